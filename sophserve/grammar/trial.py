"""Tries grammars out: `python -m sophserve.grammar.trial DIRECTORY VOCAB_SIZE`.

A grammar can take memory and time without end to compile, and a library can have a mistake. Each is tried out in a
process of its own, which such a grammar ends, and nothing else. This one reads the tokenizer once and forks them: that
takes milliseconds, and whatever a trial took is given back when it ends.
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

from sophserve.errors import RequestError
from sophserve.sampling import StructuredOutput

# Processor time of the first try, which nearly every grammar that people write does with, and of the second one.
QUICK_SECONDS = 0.15
TRIAL_SECONDS = 5.0
# How long a try may last by the clock, and how much memory it may take.
WALL_SECONDS = 30.0
TRIAL_BYTES = 1 << 29
# What gives way to the server and its workers in the second try.
_NICE = 10
# Tokens that are tried: what is too complex mostly shows at once.
TRIAL_TOKENS = 8
# Bytes of what is wrong with a grammar, which may quote it: a pipe takes so many at once.
_MOST_WORDS = 1024
_LENGTH = 4


class Try(msgspec.Struct, array_like=True):
    """What the server asks for: to try a grammar, with little time if `quick`; None ends a try that was begun."""

    number: int
    quick: bool
    structured: StructuredOutput | None


class Tried(msgspec.Struct, array_like=True):
    """The answer: what is wrong with the grammar, empty for nothing; or the signal that ended the try."""

    number: int
    problem: str = ""
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


def main(directory: str, vocab_size: str) -> None:
    """Fork a process for each grammar until the server is gone."""
    from sophserve.grammar.compiler import GrammarCompiler

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        compiler = GrammarCompiler.from_directory(Path(directory), int(vocab_size))
        # What the library makes once is there for all then. Not of JSON, for which it starts threads: a fork has none.
        compiler.try_out(StructuredOutput("regex", "a"), 1)
    except RequestError as error:  # of the model: no grammar can be applied
        problem = str(error)
        _Trials(lambda order: problem).run()
        return

    def work(order: Try) -> str:
        assert order.structured is not None
        _limit(order.quick)
        try:
            compiler.try_out(order.structured, TRIAL_TOKENS)
        except RequestError as error:
            return str(error)
        return ""

    _Trials(work).run()


def _limit(quick: bool) -> None:
    """End this process by a signal, whatever it is doing, when it has used up what it may."""
    if not quick:
        os.nice(_NICE)
    signal.setitimer(signal.ITIMER_PROF, QUICK_SECONDS if quick else TRIAL_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + TRIAL_BYTES,) * 2)


class _Trials:
    """The tries under way. work: does one, in a process of its own, and says what is wrong with the grammar."""

    def __init__(self, work: Callable[[Try], str]) -> None:
        self._work = work
        self._processes: dict[int, int] = {}  # by the number of the try
        self._frames = Frames()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until standard input ends."""
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._finish(key.fd, key.data)
                elif data := os.read(key.fd, 1 << 16):
                    for message in self._frames.push(data):
                        self._begin(msgspec.msgpack.decode(message, type=Try))
                else:
                    for process in self._processes.values():
                        os.kill(process, signal.SIGKILL)
                    return

    def _begin(self, order: Try) -> None:
        if order.structured is None:
            if order.number in self._processes:
                os.kill(self._processes[order.number], signal.SIGKILL)
            return
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.write(writing, self._work(order).encode(errors="replace")[:_MOST_WORDS])
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        self._processes[order.number] = process
        self._selector.register(reading, selectors.EVENT_READ, order.number)

    def _finish(self, reading: int, number: int) -> None:
        problem = os.read(reading, _MOST_WORDS)
        self._selector.unregister(reading)
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(self._processes.pop(number), 0)[1])
        # A panic of the library, or no memory, is the grammar's doing as an abort is.
        ended = -code if code < 0 else signal.SIGABRT if code else 0
        sys.stdout.buffer.write(frame(Tried(number, problem.decode(errors="replace"), ended)))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
