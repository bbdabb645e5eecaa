"""Starts the process that tries grammars out, and again when it is gone, and speaks to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

import msgspec

from sophserve.grammar.trial import WALL_SECONDS, Frames, Tried, Try, frame

log = logging.getLogger(__name__)

# Seconds that the process takes at most to notice that a try is over, or to start.
_PATIENCE = 30.0


class TrialProcess:
    """The server's end of sophserve.grammar.trial. The process is started when it is first needed."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._arguments = [str(directory), str(vocab_size)]
        self._numbers = itertools.count()
        self._process: Process | None = None
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[int, asyncio.Future[Tried | None]] = {}  # of the process that runs now

    @property
    def started(self) -> bool:
        """Whether there has been one."""
        return self._process is not None

    def number(self) -> int:
        """One for a try that has had none before."""
        return next(self._numbers)

    async def attempt(self, order: Try) -> Tried | None:
        """Have it tried; None if the process was lost meanwhile."""
        try:
            process = await self._running()
            assert process.stdin
            reply = self._replies[order.number] = asyncio.get_running_loop().create_future()
            process.stdin.write(frame(order))
            async with asyncio.timeout(WALL_SECONDS + _PATIENCE):
                await process.stdin.drain()
                return await reply
        except TimeoutError:
            _kill(process)  # it does not answer any more
        except OSError as error:
            log.warning("grammars cannot be tried out: %s", error)
        finally:
            self._replies.pop(order.number, None)
        return None

    def cancel(self, number: int) -> None:
        """End a try, which is answered all the same."""
        if number in self._replies and self._process and self._process.stdin:
            self._process.stdin.write(frame(Try(number, False, None)))

    async def close(self) -> None:
        """End the process and all tries."""
        if self._process:
            _kill(self._process)
            await self._process.wait()
        if self._reading:
            await self._reading

    async def _running(self) -> Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                command = [sys.executable, "-P", "-m", "sophserve.grammar.trial", *self._arguments]
                self._process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, start_new_session=True
                )
                self._replies = {}
                self._reading = asyncio.create_task(self._read(self._process, self._replies))
            return self._process

    async def _read(self, process: Process, replies: dict[int, asyncio.Future[Tried | None]]) -> None:
        """Pass answers on until the process ends."""
        assert process.stdout
        frames = Frames()
        while data := await process.stdout.read(1 << 16):
            for message in frames.push(data):
                tried = msgspec.msgpack.decode(message, type=Tried)
                if (reply := replies.get(tried.number)) and not reply.done():
                    reply.set_result(tried)
        _kill(process)  # what it forked may be left
        await process.wait()
        for reply in replies.values():
            if not reply.done():
                reply.set_result(None)


def _kill(process: Process) -> None:
    """With everything that it forked."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
