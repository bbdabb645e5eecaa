"""The other hosts of a group, as the server sees them: let in, told to start their ranks, and noticed when they go."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from sophserve.checkpoint import digest
from sophserve.config import EngineConfig, option
from sophserve.errors import ConfigError, EngineDeadError
from sophserve.launch import SECRET, Launch, sizes_in_words
from sophserve.link.host_messages import (
    Beat,
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
from sophserve.link.messages import LoadModel, Places, Progress
from sophserve.version import VERSION

log = logging.getLogger(__name__)

# Seconds that a connection has to prove what it is, and a host to stop its ranks.
GREETING_TIMEOUT, STOP_TIMEOUT = 10.0, 8.0
NONCE_BYTES = 32
# Options that may say something else on each host, for they name its files.
_OWN = ("model", "reorder_cache_dir", "chat_template")


class RemoteRanks:
    """The ranks of another host, from one start of the group to the next; as LocalRanks."""

    def __init__(self, host: RemoteHost, epoch: int, load: LoadModel) -> None:
        self.pulse = [0] * len(load.ranks_here)
        self.epoch = epoch
        self._host = host
        self._stopped = asyncio.get_running_loop().create_future()
        self._on_message: Callable[[int, bytes], None] | None = None
        self._on_exit: Callable[[str], None] | None = None
        host.ranks = self
        host.send(StartRanks(epoch, load))

    def watch(self, on_message: Callable[[int, bytes], None], on_exit: Callable[[str], None]) -> None:
        """Deliver the ranks' encoded messages, and the end of one, or of the whole host, with its cause in words."""
        self._on_message, self._on_exit = on_message, on_exit
        if self._host.lost is not None:
            asyncio.get_running_loop().call_soon(self.end, self._host.lost)

    def send(self, message: bytes) -> None:
        """Send an encoded message to every rank without waiting."""
        self._host.send(ForRanks(message))

    def stop_watching(self) -> None:
        """Deliver nothing any more."""
        self._on_message = self._on_exit = None

    async def close(self, kill: bool) -> None:
        """Have the ranks stopped. A host that does not say that they are is not asked again."""
        self.stop_watching()
        self._host.send(StopRanks(kill))
        if self._host.lost is None:
            try:
                await asyncio.wait_for(self._stopped, STOP_TIMEOUT)
            except TimeoutError:
                self._host.drop(f"it did not stop its ranks in {STOP_TIMEOUT:g} s")

    def take(self, message: FromRank | RanksEnded | RanksStopped) -> None:
        """Take a message, if it is of this start's ranks."""
        if message.epoch != self.epoch:
            return
        match message:
            case FromRank() if self._on_message:
                self._on_message(message.rank, message.message)
            case RanksEnded():
                self.end(message.cause)
            case RanksStopped():
                self.stopped()

    def end(self, cause: str) -> None:
        """The ranks are lost."""
        if self._on_exit:
            self._on_exit(cause)

    def stopped(self) -> None:
        """There is nothing left to stop."""
        if not self._stopped.done():
            self._stopped.set_result(None)


class RemoteHost:
    """The connection to the leader of another host, which has proved what it is."""

    def __init__(self, stream: HostStream, hello: Hello) -> None:
        self.hello = hello
        self.address = stream.other
        self.lost: str | None = None
        self.ranks: RemoteRanks | None = None
        self._stream = stream

    async def run(self, timeout: float, on_leaving: Callable[[], None]) -> None:
        """Take what the host says until it is lost."""

        def on_message(message: object) -> None:
            if isinstance(message, Leaving):
                log.info("%s is told to stop", self)
                on_leaving()
            elif isinstance(message, Beat) and self.ranks:
                self.ranks.pulse = message.pulse
            elif isinstance(message, FromRank | RanksEnded | RanksStopped) and self.ranks:
                self.ranks.take(message)

        cause = "what it said could not be taken"
        try:
            cause = await self._stream.serve(on_message, timeout, list)
        finally:
            self.drop(cause)

    def send(self, message: msgspec.Struct) -> None:
        """Send without waiting, unless the host is lost."""
        if self.lost is None:
            self._stream.send(message)

    def drop(self, cause: str) -> None:
        """Hang up; the host is lost, and may come again."""
        if self.lost is not None:
            return
        self.lost = f"{self} is lost: {cause}"
        self._stream.abort()
        if self.ranks:
            self.ranks.stopped()
            self.ranks.end(self.lost)

    async def close(self, problem: str) -> None:
        """Say that the server ends."""
        self.send(Goodbye(problem))
        await self._stream.close()

    def __str__(self) -> str:
        return f"the host of process {self.hello.rank} ({self.address})"


class Hosts:
    """All hosts of a launch; this one holds rank 0 and `here` ranks in all. Listens at once, needs an event loop to
    `gather` the others. on_leaving: called when one of them is told to stop. Raises ConfigError."""

    def __init__(self, launch: Launch, here: int, config: EngineConfig, directory: Path) -> None:
        self.on_leaving: Callable[[], None] = lambda: None
        self._launch = launch
        self._here = here
        self._config = config
        self._checkpoint = digest(directory)
        self._control = _listen(launch.address, launch.port)
        self._data = [listen_at(self._control.getsockname()[0]) for _ in range(here)]
        self._server: asyncio.Server | None = None
        self._hosts: dict[int, RemoteHost] = {}  # by the rank of the process
        self._tasks: dict[asyncio.Task[None], HostStream] = {}
        self._changed = asyncio.Event()
        self._problem: str | None = None
        self._epoch = 0

    @property
    def listeners(self) -> list[int]:
        """The descriptors of the sockets on which each rank of this host takes connections."""
        return [listener.fileno() for listener in self._data]

    def places(self) -> Places:
        """Where the ranks of one start of the group are. Other hosts take an empty address for that of this one."""
        hosts = self._present
        return Places(
            counts=[self._here, *(host.hello.ranks for host in hosts)],
            addresses=[
                *(("", listener.getsockname()[1]) for listener in self._data),
                *((host.address, port) for host in hosts for port in host.hello.ports),
            ],
            token=secrets.token_bytes(NONCE_BYTES),
        )

    @property
    def _present(self) -> list[RemoteHost]:
        return [host for _, host in sorted(self._hosts.items()) if host.lost is None]

    async def gather(self, timeout: float, report: Callable[[Progress], None]) -> None:
        """Wait until all hosts are there. Raises ConfigError if one does not fit, EngineDeadError if one is missing."""
        self._problem = None
        if self._server is None:
            self._server = await asyncio.start_server(self._on_connection, sock=self._control)
        size = self._config.world_size
        try:
            async with asyncio.timeout(timeout):
                while (count := self._here + sum(host.hello.ranks for host in self._present)) < size:
                    report(Progress(f"waiting for other hosts: {count} of {size} ranks are there"))
                    self._changed.clear()
                    await self._changed.wait()
                    if self._problem is not None:
                        raise ConfigError(self._problem)
        except TimeoutError:
            raise EngineDeadError(
                f"only {count} of {size} ranks were there after {timeout:g} s (--load-timeout): start the other hosts, "
                f"with MASTER_ADDR and MASTER_PORT as here, so that they reach port {self._launch.port} of this one"
            ) from None
        if count > size:
            raise ConfigError(f"the hosts hold {count} ranks, but {sizes_in_words(self._config)}")

    def start(self, load: LoadModel) -> list[RemoteRanks]:
        """Have all others start their ranks."""
        self._epoch += 1
        assert load.places is not None
        return [
            RemoteRanks(host, self._epoch, msgspec.structs.replace(load, rank=load.places.ranks(number).start))
            for number, host in enumerate(self._present, 1)
        ]

    async def close(self, problem: str) -> None:
        """Say goodbye, with the problem if there is one."""
        if self._server:
            self._server.close()
        await asyncio.gather(*(host.close(problem) for host in self._present))
        # These end with their connections; who has not said yet what it is may still be told why it is refused.
        if self._tasks:
            await asyncio.wait(self._tasks.keys(), timeout=1)
        for stream in self._tasks.values():
            stream.abort()
        self._control.close()
        for listener in self._data:
            listener.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        stream = self._tasks[task] = HostStream(reader, writer, of_server=True)
        try:
            async with asyncio.timeout(GREETING_TIMEOUT):
                host = await self._greet(stream)
            await host.run(self._config.step_timeout, lambda: self.on_leaving())
        except (OSError, TimeoutError) as error:
            log.warning("a connection from %s is closed: %s", stream.other, error or "it does not say what it is")
        finally:
            stream.abort()
            del self._tasks[task]

    async def _greet(self, stream: HostStream) -> RemoteHost:
        nonce = secrets.token_bytes(NONCE_BYTES)
        stream.send(Challenge(nonce))
        hello = await stream.receive()
        key = self._launch.key
        if not isinstance(hello, Hello) or not same(hello.proof, proof(key, "leader", nonce, hello.nonce)):
            stream.send(Refused(f"the process belongs to another launch, or has another {SECRET}"))
            await stream.close()
            raise ConnectionError(f"it belongs to another launch, or has another {SECRET}")
        if problem := self._misfit(hello):
            self._problem = f"process {hello.rank} on {stream.other} cannot be part of the group: {problem}"
            self._changed.set()
            stream.send(Refused(problem))
            await stream.close()
            raise ConnectionError(problem)
        stream.send(Welcome(proof(key, "server", nonce, hello.nonce)))
        host = RemoteHost(stream, hello)
        if before := self._hosts.get(hello.rank):
            before.drop("it was started again")
        self._hosts[hello.rank] = host
        self._changed.set()
        log.info("%s is there, for %d ranks", host, hello.ranks)
        return host

    def _misfit(self, hello: Hello) -> str | None:
        """Why a host cannot take part."""
        if hello.version != VERSION:
            return f"it runs sophserve {hello.version}, rank 0 runs {VERSION}; install one version on all hosts"
        for name in EngineConfig.__struct_fields__:
            here, there = getattr(self._config, name), getattr(hello.config, name)
            if name not in _OWN and here != there:
                return f"{option(name)} is {there} there and {here} at rank 0; start all with the same options"
        if len(hello.ports) != hello.ranks:
            return f"it takes connections for {len(hello.ports)} of its {hello.ranks} ranks"
        if hello.checkpoint != self._checkpoint:
            return "its copy of the checkpoint differs from that of rank 0; give all hosts the same files"
        return None


def _listen(address: str, port: int) -> socket.socket:
    """A listening socket at an address of this host, or at all of them if it has no such one. Raises ConfigError."""
    with suppress(OSError):
        return listen_at(address, port)
    try:
        return listen_at("", port)
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
        raise ConfigError(
            f"port {port}, on which rank 0 takes connections of other hosts, is {reason}; choose another MASTER_PORT, "
            "which is the one below"
        ) from None


def listen_at(address: str, port: int = 0) -> socket.socket:
    """A listening socket; without an address at all of this host. Raises OSError."""
    found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener
