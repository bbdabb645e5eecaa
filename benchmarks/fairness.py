"""What others notice while one client is hostile: `fairness.py [--model MODEL] [--only WORDS] [-- sophserve options]`.

For each body and behaviour of hostile.py, in both sizes, a bystander in a process of its own (bystander.py) reads a
stream and asks /health, and newcomers ask for a short answer. A row says what the hostile client was answered, the
stream's longest gap between tokens, absolute and as a multiple of the p99 without any load, the longest wait for a new
stream's first token, of /health and of a newcomer, and the server's memory before, right after and 5 s later. Each
row has a server of its own. It is fair if no gap is above 3 x that p99 or what a plain prompt of the context costs,
whichever is longer, and /health answers within 100 ms. Newcomers wait behind those who asked before them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bystander import Noticed, bystander
from benchmarks.hostile import CASES, PLAIN, Case
from benchmarks.machine import commit, cpu_model
from benchmarks.running import Running, running

UNDISTURBED, AFTER, CALM = 3.0, 0.5, 5.0  # seconds: watched before, watched after, and until memory is looked at again
LONGEST = 120.0  # seconds that a case may take
MOST_GAPS, MOST_HEALTH = 3.0, 0.1  # what a server that is fair stays below

HEAD = [
    "client",
    "size",
    "answered",
    "s",
    "longest gap, ms",
    "of p99",
    "first token, ms",
    "/health, ms",
    "newcomer, ms",
    "served",
]
HEAD += ["memory, MiB: before", "after", "5 s later", "trials", "fair"]


@dataclass
class Row:
    """What one case did. memory: of the server before, after and later, and of its other processes but workers."""

    name: str
    size: int
    answered: dict[str, int]
    seconds: float
    before: Noticed
    during: Noticed
    memory: list[float]
    alive: bool

    def fair(self, plain: float) -> bool:
        """Whether a bystander has nothing to complain about, where a plain prompt makes it wait for so long."""
        waits = self.during.worst <= max(MOST_GAPS * self.before.p99, plain) and self.during.health <= MOST_HEALTH
        return waits and self.alive and self.during.newcomers_served

    def cells(self, plain: float) -> list[str]:
        """Those of a table's row."""
        during, problems = self.during, ", ".join(f"{count} x {name}" for name, count in self.during.problems.items())
        answered = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in self.answered.items())
        times = (during.first, during.health, during.newcomer)
        return [
            *(self.name, str(self.size), answered, f"{self.seconds:.1f}", f"{1000 * during.worst:.1f}"),
            f"{during.worst / self.before.p99:.1f}" if self.before.p99 else "-",
            *(f"{1000 * each:.0f}" for each in times),
            "yes" if during.newcomers_served and not problems else problems or "no",
            *(f"{each:.0f}" for each in self.memory),
            ("yes" if self.fair(plain) else "no") if self.alive else "the server died",
        ]


async def measure(server: Running, case: Case, size: int) -> Row:
    """One row, with a server that has done nothing else."""
    async with bystander(server.url) as others:
        undisturbed = await others.watch(UNDISTURBED)
        memory = [server.memory]
        started = time.monotonic()
        await others.noticed()
        try:
            async with asyncio.timeout(LONGEST):
                answered = await case.attack(server, size)
        except Exception as error:  # the server may be gone, and this is what is measured
            answered = Counter({type(error).__name__: 1})
        seconds = time.monotonic() - started
        await asyncio.sleep(AFTER)
        during = await others.noticed()
        memory.append(server.memory)
        await asyncio.sleep(CALM)
        memory += [server.memory, server.others_memory]
        return Row(case.name, size, dict(answered), seconds, undisturbed, during, memory, server.alive)


def chosen(words: str, sizes: str) -> list[tuple[Case, int]]:
    """The cases whose name has one of the words, separated by commas, in the sizes asked for."""
    cases = [case for case in CASES if any(word in case.name for word in words.split(","))]
    which = {"small": [0], "large": [1], "both": [0, 1]}[sizes]
    return [(case, case.sizes[index]) for case in cases for index in which]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="(default: demo)")
    parser.add_argument("--only", default="", help="words, separated by commas, one of which a case's name must have")
    parser.add_argument("--sizes", choices=("small", "large", "both"), default="both", help="(default: both)")
    parser.add_argument("--json", type=Path, help="also write everything measured here, an object a line")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "fairness.log", help="the server's")
    parser.add_argument("options", nargs="*", help="for sophserve")
    options = parser.parse_args()
    print(f"{cpu_model()}, commit {commit()}, model {Path(options.model).name}, {' '.join(options.options)}\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    rows = []
    plain = 0.0
    for case, size in [(PLAIN, PLAIN.sizes[1]), *chosen(options.only, options.sizes)]:
        with running(options.model, options.options, options.log) as server:
            row = asyncio.run(measure(server, case, size))
        plain = plain or row.during.worst
        rows.append(row)
        print(f"| {' | '.join(row.cells(plain))} |", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    unfair = [row.name for row in rows if not row.fair(plain)]
    print(f"\n{len(rows) - len(unfair)} of {len(rows)} are fair.")
    sys.exit(bool(unfair))


if __name__ == "__main__":
    main()
