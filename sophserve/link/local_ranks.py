"""The worker processes of this host: started, sent plans, heard from, and noticed when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import BinaryIO

from msgspec.structs import replace

from sophserve.errors import see
from sophserve.link.channel import Reader, Ring, Writer
from sophserve.link.messages import LoadModel, encode
from sophserve.link.pulse import Pulse
from sophserve.standard_streams import open_standard_streams

log = logging.getLogger(__name__)

# Shared by the ranks for their collectives; untouched pages cost nothing.
COLLECTIVES_BYTES = 64 << 20
NO_DESCRIPTOR = -1


class Worker:
    """One worker process. It holds the reading end of a pipe whose writing end is ours: when we are gone, however we
    ended, the pipe closes and the worker exits."""

    def __init__(self, load: LoadModel, collectives: list[int], listener: int) -> None:
        self.rank = load.rank
        self._loop: asyncio.AbstractEventLoop | None = None
        with ExitStack() as resources:  # if something fails, what was made before it goes away
            self._rings = [resources.enter_context(closing(Ring.create())) for _ in range(2)]
            self.pulse = resources.enter_context(closing(Pulse.create()))
            lifeline, self._lifeline = os.pipe()
            resources.callback(os.close, self._lifeline)
            with os.fdopen(lifeline):
                self._process = self._start([lifeline, self.pulse.descriptor, listener], collectives)
            resources.callback(self._process.wait)
            resources.callback(self._process.kill)
            self._pidfd = os.pidfd_open(self._process.pid)
            self._writer = Writer(self._rings[0])
            self._reader = Reader(self._rings[1])
            self._writer.send(encode(load))
            resources.pop_all()

    def _start(self, own: list[int], collectives: list[int]) -> subprocess.Popen[bytes]:
        descriptors = [*own, *self._rings[0].descriptors, *self._rings[1].descriptors, *collectives]
        # A session of its own keeps the terminal's Ctrl-C away: the server decides when workers stop.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "sophserve.worker.process", *map(str, descriptors)],
            pass_fds=[descriptor for descriptor in descriptors if descriptor != NO_DESCRIPTOR],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, on_message: Callable[[bytes], None], on_exit: Callable[[str], None]) -> None:
        """Deliver encoded messages, and the worker's end with its cause in words, to the running event loop."""

        def readable() -> None:
            for message in self._reader.receive():
                on_message(message)

        def exited() -> None:
            readable()
            self.stop_watching()
            on_exit(_cause(self._process.wait()))

        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader.descriptor, readable)
        self._loop.add_reader(self._pidfd, exited)

    def send(self, message: bytes) -> None:
        """Send an encoded plan without waiting."""
        assert self._loop is not None, "watch() comes first"
        self._writer.send_soon(message, self._loop)

    def stop_watching(self) -> None:
        """Deliver nothing any more."""
        if self._loop is not None:
            for descriptor in (self._reader.descriptor, self._pidfd, self._rings[0].freed):
                self._loop.remove_reader(descriptor)
            self._loop = None

    def abandon(self) -> None:
        """Kill a worker that nobody watches yet, and release everything that was shared with it."""
        os.close(self._lifeline)
        self._process.kill()
        self._process.wait()
        self._release()

    async def close(self, kill: bool) -> None:
        """Let the worker exit, or kill it, and release everything that was shared with it."""
        self.stop_watching()
        os.close(self._lifeline)
        if kill:
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            log.warning("worker %d did not exit in 5 s and is killed", self._process.pid)
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        os.close(self._pidfd)
        self.pulse.close()
        for ring in self._rings:
            ring.close()


class LocalRanks:
    """The ranks of this host, each a process. listeners: the descriptors of sockets on which each of them takes
    connections of other hosts; none where there are none."""

    def __init__(self, load: LoadModel, listeners: Sequence[int] = ()) -> None:
        open_standard_streams()  # or a descriptor below 3 would be lost on its way to a worker
        ranks = load.ranks_here
        self._alone = load.world_size == 1
        self._workers: list[Worker] = []
        with ExitStack() as memories:
            groups = [memories.enter_context(_memory()) for _ in load.groups]
            try:
                for rank in ranks:
                    mine = [
                        memory.fileno() if rank in members else NO_DESCRIPTOR
                        for memory, members in zip(groups, load.groups, strict=True)
                    ]
                    listener = listeners[rank - ranks.start] if listeners else NO_DESCRIPTOR
                    self._workers.append(Worker(replace(load, rank=rank), mine, listener))
            except OSError:
                for worker in self._workers:
                    worker.abandon()
                raise

    @property
    def pulse(self) -> list[int]:
        """Numbers that change while the workers compute."""
        return [worker.pulse.count for worker in self._workers]

    def watch(self, on_message: Callable[[int, bytes], None], on_exit: Callable[[str], None]) -> None:
        """Deliver the ranks' encoded messages, and their end, with its cause in words, when the first one ends."""

        def ended(rank: int, cause: str) -> None:
            self.stop_watching()
            who = "the worker process" if self._alone else f"the worker process of rank {rank}"
            on_exit(f"{who} {cause}")

        for worker in self._workers:
            worker.watch(partial(on_message, worker.rank), partial(ended, worker.rank))

    def send(self, message: bytes) -> None:
        """Send an encoded message to every rank without waiting."""
        for worker in self._workers:
            worker.send(message)

    def stop_watching(self) -> None:
        """Deliver nothing any more."""
        for worker in self._workers:
            worker.stop_watching()

    async def close(self, kill: bool) -> None:
        """Let the workers exit, or kill them, and release everything that was shared with them."""
        await asyncio.gather(*(worker.close(kill) for worker in self._workers))


def _memory() -> BinaryIO:
    """What the ranks of a group share for their collectives."""
    memory = os.fdopen(os.memfd_create("sophserve-collectives"), "wb")
    os.ftruncate(memory.fileno(), COLLECTIVES_BYTES)
    return memory


def _cause(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by signal {-returncode} {see('killed')}"
    return f"exited with status {returncode}"
