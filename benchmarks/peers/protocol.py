"""What compare.py and a measured system say to each other. Needs nothing but Python, for it runs in any environment.

`python -m benchmarks.peers.NAME MODEL THREADS` loads the model, prints `{"ready": seconds}`, and answers each
workload, a JSON object on a line of standard input, with `{"seconds": ...}` or `{"error": ...}` on a line of its own.
In between it waits for input and uses no CPU.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

DECODE_STEPS = 24


@dataclass(frozen=True)
class Workload:
    """decode: a step of `batch` sequences of `context` tokens. prefill: `batch` prompts of `context` tokens."""

    kind: str
    batch: int
    context: int

    @property
    def name(self) -> str:
        """`prefill-1024`, or `decode-8x128` for 8 sequences."""
        return f"prefill-{self.context}" if self.kind == "prefill" else f"decode-{self.batch}x{self.context}"

    @property
    def tokens(self) -> int:
        """Tokens that one repetition computes."""
        return self.context if self.kind == "prefill" else self.batch

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class System(Protocol):
    """A loaded model. Both methods return seconds."""

    def prefill(self, context: int) -> float:
        """The time to the first token of a prompt that no cache knows."""

    def decode(self, batch: int, context: int) -> float:
        """The time of one step."""


def prompt(length: int) -> list[int]:
    """Random token ids that every vocabulary of a thousand has and that are not special."""
    return [random.randrange(300, 1000) for _ in range(length)]


class Generator(ABC):
    """A System that can only be asked for whole answers."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], tokens: int) -> None:
        """Answer all prompts at once, greedily, with so many tokens each."""

    def prefill(self, context: int) -> float:
        """The time of an answer of one token."""
        prompts = [prompt(context)]
        start = time.perf_counter()
        self.generate(prompts, 1)
        return time.perf_counter() - start

    def decode(self, batch: int, context: int) -> float:
        """Two runs over the same prompts that differ by DECODE_STEPS tokens, the median of three such differences. A
        first run puts the prompts into the prefix cache, as far as whole blocks of it are filled; what is prefilled
        again is part of both runs."""
        prompts = [prompt(context) for _ in range(batch)]
        self.generate(prompts, 1)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self.generate(prompts, 4)
            middle = time.perf_counter()
            self.generate(prompts, 4 + DECODE_STEPS)
            times.append((time.perf_counter() - middle - (middle - start)) / DECODE_STEPS)
        return statistics.median(times)


def serve(load: Callable[[str, int], System]) -> None:
    """Be such a process: main() of every module here."""
    started = float(os.environ.get("BENCHMARK_STARTED", time.time()))
    # Libraries print what they like on standard output; the answers go where they cannot.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    system = load(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"ready": time.time() - started}), file=answers)
    for line in sys.stdin:
        work = Workload(**json.loads(line))
        try:
            seconds = measure(system, work)
            print(json.dumps({"seconds": seconds}), file=answers)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)


def measure(system: System, work: Workload) -> float:
    """Seconds of one repetition: the median of some."""
    if work.kind == "decode":
        return system.decode(work.batch, work.context)
    if work.context < 4096:
        system.prefill(work.context)
    return statistics.median(system.prefill(work.context) for _ in range(max(1, min(5, 4096 // work.context))))
