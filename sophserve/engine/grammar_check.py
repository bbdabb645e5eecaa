"""Refuses grammars that a worker could not follow: `python -m sophserve.engine.grammar_check DIRECTORY VOCAB_SIZE`.

A grammar can take memory and time without end to compile, and a library can have a mistake. It is tried out first in a
process of its own, which such a grammar ends, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec

from sophserve.errors import RequestError
from sophserve.sampling import StructuredOutput

# Processor time and memory that trying out a grammar may take.
TRIAL_SECONDS = 5.0
TRIAL_BYTES = 1 << 31
# Tokens that are tried: what is too complex mostly shows at once.
TRIAL_TOKENS = 8
# Grammars whose outcome is remembered.
CACHE_SIZE = 256
_LENGTH = 4


class GrammarCheck:
    """The server's side. The process is started when it is first needed.

    announce: told of every grammar that is good, and of a simple one at the first question, that the worker may compile
    them, and read its tokenizer, ahead of the request.
    """

    def __init__(
        self, directory: Path, vocab_size: int, announce: Callable[[StructuredOutput], None] = lambda _: None
    ) -> None:
        self._announce = announce
        self._arguments = [str(directory), str(vocab_size)]
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._problems: OrderedDict[StructuredOutput, str] = OrderedDict()

    async def check(self, structured: StructuredOutput) -> None:
        """Raise RequestError for a grammar that cannot be applied. Those that were checked lately take no time."""
        if self._process is None:
            self._announce(StructuredOutput("json_object"))
        if structured not in self._problems:
            # Whoever asked may go away, but the process answers all the same.
            problem = await asyncio.shield(asyncio.create_task(self._try(structured)))
            self._problems[structured] = problem
            if len(self._problems) > CACHE_SIZE:
                self._problems.popitem(last=False)
            if not problem:
                self._announce(structured)
        if self._problems[structured]:
            raise RequestError(self._problems[structured])
        self._problems.move_to_end(structured)

    async def close(self) -> None:
        """End the process."""
        if self._process:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    async def _try(self, structured: StructuredOutput) -> str:
        """What is wrong with it; empty for nothing."""
        async with self._lock:
            if self._process is None or self._process.returncode is not None:
                command = [sys.executable, "-P", "-m", "sophserve.engine.grammar_check", *self._arguments]
                self._process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, start_new_session=True
                )
            process = self._process
            assert process.stdin and process.stdout
            message = msgspec.msgpack.encode(structured)
            try:
                process.stdin.write(len(message).to_bytes(_LENGTH, "little") + message)
                await process.stdin.drain()
                length = int.from_bytes(await process.stdout.readexactly(_LENGTH), "little")
                return (await process.stdout.readexactly(length)).decode()
            except (asyncio.IncompleteReadError, ConnectionError):
                await process.wait()
                return f"the {structured.kind} is too complex to be compiled; simplify it"


def main(directory: str, vocab_size: str) -> None:
    """Answer one grammar after the other until the server is gone."""
    from sophserve.engine.grammar import GrammarCompiler

    compiler = GrammarCompiler.from_directory(Path(directory), int(vocab_size))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + TRIAL_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while header := sys.stdin.buffer.read(_LENGTH):
        message = sys.stdin.buffer.read(int.from_bytes(header, "little"))
        structured = msgspec.msgpack.decode(message, type=StructuredOutput)
        signal.setitimer(signal.ITIMER_PROF, TRIAL_SECONDS)  # its signal ends the process, whatever that is doing
        problem = b""
        try:
            compiler.try_out(structured, TRIAL_TOKENS)
        except RequestError as error:
            problem = str(error).encode(errors="replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(problem).to_bytes(_LENGTH, "little") + problem)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
