"""Tries grammars out: `python -m sophserve.grammar.trial DIRECTORY VOCAB_SIZE`.

A grammar can take memory and time without end to compile: each is tried out in a process of its own (sophserve.forks).
The one that forks them reads the tokenizer once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from sophserve.errors import RequestError
from sophserve.forks import Forks, limit_memory, limit_time
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


class Try(msgspec.Struct, array_like=True):
    """The content of a job: to try a grammar, with little time if `quick`. The answer says what is wrong with it, empty
    for nothing."""

    quick: bool
    structured: StructuredOutput


def main(directory: str, vocab_size: str) -> None:
    """Fork a process for each grammar until the server is gone."""
    from sophserve.grammar.compiler import GrammarCompiler

    try:
        compiler = GrammarCompiler.from_directory(Path(directory), int(vocab_size))
        # What the library makes once is there for all then. Not of JSON, for which it starts threads: a fork has none.
        compiler.try_out(StructuredOutput("regex", "a"), 1)
    except RequestError as error:  # of the model: no grammar can be applied
        problem = str(error).encode(errors="replace")
        Forks(lambda content: problem).run()
        return

    def work(content: bytes) -> bytes:
        order = msgspec.msgpack.decode(content, type=Try)
        if not order.quick:
            os.nice(_NICE)
        limit_time(QUICK_SECONDS if order.quick else TRIAL_SECONDS, WALL_SECONDS)
        limit_memory(TRIAL_BYTES)
        try:
            compiler.try_out(order.structured, TRIAL_TOKENS)
        except RequestError as error:
            return str(error).encode(errors="replace")
        return b""

    Forks(work).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
