"""The worker processes as the engine sees them: started, sent plans, heard from, and noticed when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable

from sophserve.worker.channel import Reader, Ring, Writer
from sophserve.worker.messages import FromWorker, LoadModel, StepPlan, decode_from_worker, encode

log = logging.getLogger(__name__)


class Worker:
    """One worker process. It holds the reading end of a pipe whose writing end is ours: when we are gone, however we
    ended, the pipe closes and the worker exits."""

    def __init__(self, load: LoadModel) -> None:
        self._rings = (Ring.create(), Ring.create())
        self._writer = Writer(self._rings[0])
        self._reader = Reader(self._rings[1])
        lifeline, self._lifeline = os.pipe()
        descriptors = [lifeline, *self._rings[0].descriptors, *self._rings[1].descriptors]
        # A session of its own keeps the terminal's Ctrl-C away: the server decides when workers stop.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sophserve.worker.process", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(lifeline)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer.send(encode(load))

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        """Deliver messages, and the worker's end with its cause in words, to the running event loop."""

        def readable() -> None:
            for message in self._reader.receive():
                on_message(decode_from_worker(message))

        def exited() -> None:
            readable()
            self._stop_watching()
            on_exit(_cause(self._process.wait()))

        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader.descriptor, readable)
        self._loop.add_reader(self._pidfd, exited)

    def send(self, plan: StepPlan) -> None:
        """Send a plan without waiting."""
        assert self._loop is not None, "watch() comes first"
        self._writer.send_soon(encode(plan), self._loop)

    async def close(self) -> None:
        """Let the worker exit, or kill it, and release everything that was shared with it."""
        self._stop_watching()
        os.close(self._lifeline)
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            log.warning("worker %d did not exit in 5 s and is killed", self.pid)
            self._process.kill()
            self._process.wait()
        os.close(self._pidfd)
        for ring in self._rings:
            ring.close()

    def _stop_watching(self) -> None:
        if self._loop is not None:
            for descriptor in (self._reader.descriptor, self._pidfd, self._rings[0].freed):
                self._loop.remove_reader(descriptor)
            self._loop = None


def _cause(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by signal {-returncode}"
    return f"exited with status {returncode}"
