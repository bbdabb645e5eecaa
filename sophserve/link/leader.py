"""The first process of a host that does not hold rank 0: it starts the host's ranks and passes on what they and the
server say to each other."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec

from sophserve.checkpoint import digest
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, EngineDeadError
from sophserve.launch import SECRET, Launch
from sophserve.link.host_messages import (
    Challenge,
    ForRanks,
    FromRank,
    Goodbye,
    Hello,
    HostStream,
    Leaving,
    RanksEnded,
    RanksStopped,
    Refused,
    StartRanks,
    StopRanks,
    Welcome,
    proof,
    same,
)
from sophserve.link.hosts import GREETING_TIMEOUT, NONCE_BYTES, listen_at
from sophserve.link.local_ranks import LocalRanks
from sophserve.version import VERSION

log = logging.getLogger(__name__)

# Seconds between attempts to reach rank 0, and beyond --drain-timeout for the server to say goodbye.
PAUSE, GRACE = 0.3, 10.0


def lead(launch: Launch, ranks: int, config: EngineConfig, directory: Path, drain_timeout: float) -> None:
    """Hold `ranks` ranks for the server until it says goodbye or this process is told to stop. Raises EngineDeadError
    if the server ends for a problem, or is out of reach for --load-timeout; ConfigError if it refuses this host."""
    if not launch.address:
        raise ConfigError(
            "the address of rank 0 is not known; set MASTER_ADDR for all processes (mpirun: -x MASTER_ADDR)"
        )
    asyncio.run(Leader(launch, ranks, config, directory, drain_timeout).run())


class Leader:
    """What the leader knows. One `run`."""

    def __init__(
        self,
        launch: Launch,
        ranks: int,
        config: EngineConfig,
        directory: Path,
        drain_timeout: float,
    ) -> None:
        self._launch = launch
        self._count = ranks
        self._config = config
        self._directory = directory
        self._checkpoint = digest(directory)
        self._drain_timeout = drain_timeout
        self._stream: HostStream | None = None
        self._listeners: list[socket.socket] = []
        self._ranks: LocalRanks | None = None
        self._epoch = 0
        self._stopping: asyncio.Task[None] | None = None
        self._goodbye: str | None = None
        self._leaving = False
        self._end = asyncio.Event()

    async def run(self) -> None:
        """See `lead`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        working = asyncio.create_task(self._work())
        ending = asyncio.create_task(self._end.wait())
        try:
            await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)
            await self._stop(kill=True)
        if self._goodbye:
            raise EngineDeadError(f"rank 0 has ended: {self._goodbye}")

    def _on_signal(self) -> None:
        if self._leaving:
            os._exit(130)  # the workers notice and exit as well
        self._leaving = True
        if self._stream is None:
            self._end.set()
            return
        log.info("stopping, once rank 0 has")
        self._stream.send(Leaving())
        asyncio.get_running_loop().call_later(self._drain_timeout + GRACE, self._end.set)

    async def _work(self) -> None:
        while self._goodbye is None and not self._leaving:
            stream = self._stream = await self._reach()
            log.info("rank 0 is there, at %s", stream.other)
            try:
                cause = await stream.serve(self._on_message, self._config.step_timeout, self._pulse)
            finally:
                self._stream = None
                stream.abort()
            await self._stop(kill=True)
            if self._goodbye is None and not self._leaving:
                log.error("rank 0 is lost: %s; waiting for it to come back", cause)

    async def _reach(self) -> HostStream:
        """Try again and again, for the server may be started after this process, or anew."""
        where, last = f"rank 0 at {self._launch.address} port {self._launch.port}", ""
        log.info("waiting for %s", where)
        try:
            async with asyncio.timeout(self._config.load_timeout):
                while True:
                    try:
                        async with asyncio.timeout(GREETING_TIMEOUT):
                            return await self._connect()
                    except (OSError, TimeoutError) as error:
                        last = str(error) or "no answer"
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise EngineDeadError(
                f"{where} was not to be reached in {self._config.load_timeout:g} s (--load-timeout): {last}"
            ) from None

    async def _connect(self) -> HostStream:
        reader, writer = await asyncio.open_connection(self._launch.address, self._launch.port)
        stream = HostStream(reader, writer, of_server=False)
        try:
            await self._greet(stream)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _greet(self, stream: HostStream) -> None:
        challenge = await stream.receive()
        if not isinstance(challenge, Challenge):
            raise ConnectionError("it is no server of sophserve")
        if not self._listeners:
            self._listeners = [listen_at(stream.own) for _ in range(self._count)]
        nonce, key = secrets.token_bytes(NONCE_BYTES), self._launch.key
        stream.send(
            Hello(
                nonce,
                proof(key, "leader", challenge.nonce, nonce),
                VERSION,
                self._launch.rank,
                self._count,
                [listener.getsockname()[1] for listener in self._listeners],
                self._config,
                self._checkpoint,
            )
        )
        answer = await stream.receive()
        if isinstance(answer, Refused):
            raise ConfigError(f"rank 0 refuses this host: {answer.reason}")
        if not isinstance(answer, Welcome) or not same(answer.proof, proof(key, "server", challenge.nonce, nonce)):
            raise ConnectionError(f"the server does not know this launch's {SECRET}")

    def _pulse(self) -> list[int]:
        return self._ranks.pulse if self._ranks else []

    def _on_message(self, message: Any) -> None:
        match message:
            case StartRanks():
                self._start(message)
            case ForRanks() if self._ranks:
                self._ranks.send(message.message)
            case StopRanks():
                self._stopping = asyncio.create_task(self._stop(message.kill))
            case Goodbye():
                self._goodbye = message.problem

    def _start(self, message: StartRanks) -> None:
        assert self._stream is not None
        epoch = self._epoch = message.epoch
        load = message.load
        assert load.places is not None
        for rank in load.places.ranks(0):
            load.places.addresses[rank] = (self._stream.other, load.places.addresses[rank][1])
        load = msgspec.structs.replace(load, directory=str(self._directory), config=self._config)
        try:
            self._ranks = LocalRanks(load, [listener.fileno() for listener in self._listeners])
        except OSError as error:
            self._say(RanksEnded(epoch, f"the ranks of {socket.gethostname()} cannot be started: {error}"))
            return
        where = f" on {socket.gethostname()}"
        self._ranks.watch(
            lambda rank, encoded: self._say(FromRank(epoch, rank, encoded)),
            lambda cause: self._say(RanksEnded(epoch, cause + where)),
        )

    def _say(self, message: msgspec.Struct) -> None:
        if self._stream:
            self._stream.send(message)

    async def _stop(self, kill: bool) -> None:
        ranks, self._ranks = self._ranks, None
        if ranks:
            await ranks.close(kill)
        self._say(RanksStopped(self._epoch))
