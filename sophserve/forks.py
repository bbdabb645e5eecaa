"""A process that forks another one for each job.

What a client sends can take memory and time without end to work on, and a library can have a mistake. Such a job has a
process of its own, which it ends, and nothing else. This one has read and imported all that jobs need and forks them:
that takes milliseconds, and whatever a job took is given back when it ends. sophserve.forks_process is the server's
end.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

# Bytes of an answer: a pipe takes so many at once.
MOST_ANSWER = 1024
_LENGTH = 4


class Job(msgspec.Struct, array_like=True):
    """What the server asks for; without content, to end a job that was begun."""

    number: int
    content: bytes | None


class Done(msgspec.Struct, array_like=True):
    """The end of a job: its answer, cut to MOST_ANSWER, or the signal that ended it."""

    number: int
    answer: bytes = b""
    signal: int = 0


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    encoded = msgspec.msgpack.encode(message)
    return len(encoded).to_bytes(_LENGTH, "little") + encoded


class Frames:
    """Finds the messages in pieces of a stream."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now."""
        self._pending += data
        while len(self._pending) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._pending[:_LENGTH], "little")
            if len(self._pending) < end:
                return
            yield bytes(self._pending[_LENGTH:end])
            del self._pending[:end]


def limit_time(processor: float, wall: float) -> None:
    """End this process by SIGPROF after so many seconds of processor time, by SIGALRM by the clock."""
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, wall)


def limit_memory(size: int) -> None:
    """Let this process take so many bytes beyond those that it has now. It may be called again."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + size
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class Forks:
    """The jobs under way. work: does one, in a process of its own, and answers; it sets its limits itself."""

    def __init__(self, work: Callable[[bytes], bytes]) -> None:
        self._work = work
        self._processes: dict[int, int] = {}  # by the number of the job
        self._frames = Frames()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until standard input ends."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._finish(key.fd, key.data)
                elif data := os.read(key.fd, 1 << 16):
                    for message in self._frames.push(data):
                        self._begin(msgspec.msgpack.decode(message, type=Job))
                else:
                    for process in self._processes.values():
                        os.kill(process, signal.SIGKILL)
                    return

    def _begin(self, job: Job) -> None:
        if job.content is None:
            if job.number in self._processes:
                os.kill(self._processes[job.number], signal.SIGKILL)
            return
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                # The server reads until the process that forks is gone: no job may hold its output open.
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, sys.stdin.fileno())
                os.dup2(nothing, sys.stdout.fileno())
                os.write(writing, self._work(job.content)[:MOST_ANSWER])
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        self._processes[job.number] = process
        self._selector.register(reading, selectors.EVENT_READ, job.number)

    def _finish(self, reading: int, number: int) -> None:
        answer = os.read(reading, MOST_ANSWER)
        self._selector.unregister(reading)
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(self._processes.pop(number), 0)[1])
        # A panic of a library, or no memory, is the job's doing as an abort is.
        ended = -code if code < 0 else signal.SIGABRT if code else 0
        sys.stdout.buffer.write(frame(Done(number, answer, ended)))
        sys.stdout.buffer.flush()
