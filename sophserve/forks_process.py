"""Starts a process that forks jobs (sophserve.forks), and again when it is gone, and speaks to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from sophserve.forks import Done, Frames, Job, frame

log = logging.getLogger(__name__)

OWN_FAULT = {signal.SIGPROF, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""How a job ends that takes too much processor time or memory, or breaks the library."""
ATTEMPTS = 2
"""So often a job is begun whose process ends for another reason."""

# Seconds that the process takes at most to notice that a job is over, or to start.
_PATIENCE = 30.0


class ForksProcess:
    """The server's end of a module whose main runs sophserve.forks.Forks. The process is started when it is first
    needed. seconds: how long a job may last by the clock. purpose: what cannot be done without it, for the log."""

    def __init__(self, module: str, arguments: Sequence[str], seconds: float, purpose: str) -> None:
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._seconds = seconds
        self._purpose = purpose
        self._numbers = itertools.count()
        self._process: Process | None = None
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[int, asyncio.Future[Done | None]] = {}  # of the process that runs now

    @property
    def started(self) -> bool:
        """Whether there has been one."""
        return self._process is not None

    async def start(self) -> None:
        """Start the process ahead of the first job. What is wrong with it, that one hears."""
        with suppress(OSError):
            await self._running()

    def number(self) -> int:
        """One for a job that has had none before."""
        return next(self._numbers)

    async def attempt(self, number: int, content: bytes) -> Done | None:
        """Have a job done; None if the process was lost meanwhile."""
        try:
            process = await self._running()
            assert process.stdin
            reply = self._replies[number] = asyncio.get_running_loop().create_future()
            process.stdin.write(frame(Job(number, content)))
            async with asyncio.timeout(self._seconds + _PATIENCE):
                await process.stdin.drain()
                return await reply
        except TimeoutError:
            _kill(process)  # it does not answer any more
        except OSError as error:
            log.warning("%s: %s", self._purpose, error)
        finally:
            self._replies.pop(number, None)
        return None

    async def run(self, content: bytes) -> Done | None:
        """As attempt; a caller that is cancelled waits until the job has ended, so that what it works on may go."""
        number = self.number()
        attempt = asyncio.ensure_future(self.attempt(number, content))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            self.cancel(number)
            await attempt
            raise

    def cancel(self, number: int) -> None:
        """End a job, which is answered all the same."""
        if number in self._replies and self._process and self._process.stdin:
            self._process.stdin.write(frame(Job(number, None)))

    async def close(self) -> None:
        """End the process and all jobs."""
        if self._process:
            _kill(self._process)
            await self._process.wait()
        if self._reading:
            await self._reading

    async def _running(self) -> Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=PIPE, stdout=PIPE, start_new_session=True
                )
                self._replies = {}
                self._reading = asyncio.create_task(self._read(self._process, self._replies))
            return self._process

    async def _read(self, process: Process, replies: dict[int, asyncio.Future[Done | None]]) -> None:
        """Pass answers on until the process ends."""
        assert process.stdout
        frames = Frames()
        while data := await process.stdout.read(1 << 16):
            for message in frames.push(data):
                done = msgspec.msgpack.decode(message, type=Done)
                if (reply := replies.get(done.number)) and not reply.done():
                    reply.set_result(done)
        _kill(process)  # what it forked may be left
        await process.wait()
        for reply in replies.values():
            if not reply.done():
                reply.set_result(None)


def _kill(process: Process) -> None:
    """With everything that it forked."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
