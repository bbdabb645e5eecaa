"""Minutes of everything at once: `soak.py [--minutes 30] [--model MODEL] [--tensor-parallel-size N]`.

Clients send requests with known answers (soak_jobs.py) over every endpoint and compare what they get, to the last bit,
with the answers of the idle server; others leave in the middle of a stream or send hostile bodies; and every 20 seconds
a worker is killed. 429 and 503 are waited for as Retry-After says, and counted. At the end the server must be idle,
nothing may be lost or wrong, and memory, descriptors and threads of the server in the last third of the time must be
those of the second third.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import hostile
from benchmarks.machine import commit, cpu_model
from benchmarks.running import Running, running
from benchmarks.soak_jobs import Job, make_jobs

OPTIONS = ["--max-restarts", "1000000", "--kv-cache-memory", "16MiB", "--response-store-memory", "4MiB"]
PATIENCE = 180.0  # seconds that a request may take, waits and restarts included
SAMPLE_PERIOD = 2.0
HOSTILE = [*hostile.FIELDS, *hostile.CONVERSATIONS, *hostile.TEXTS, *hostile.GRAMMARS]

# How much more than in the second third there may be in the last one. Caches of bounded size fill up within minutes.
MORE = {"memory": 16.0, "descriptors": 8.0, "threads": 4.0}
WARM, MORE_MEMORY_WHILE_COLD = 600.0, 96.0


@dataclass
class Sample:
    """Of the server process, memory in MiB; workers and others: memory of those it started."""

    at: float
    memory: float
    descriptors: int
    threads: int
    workers: float
    others: float


@dataclass
class Record:
    """What happened. wrong: what was answered with something else than when idle, or with an error that is not due."""

    answers: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    hostile: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    left: int = 0
    kills: int = 0
    longest: float = 0.0

    def growth(self) -> dict[str, tuple[float, float]]:
        """Medians of the second third of the time and of the last."""
        end = self.samples[-1].at
        second = [each for each in self.samples if end / 3 <= each.at < 2 * end / 3]
        last = [each for each in self.samples if each.at >= 2 * end / 3]
        of = lambda samples, name: median(getattr(each, name) for each in samples)  # noqa: E731
        return {name: (of(second, name), of(last, name)) for name in MORE}

    def faults(self) -> list[str]:
        """Why the run has failed."""
        more = MORE if self.samples[-1].at >= WARM - 2 * SAMPLE_PERIOD else MORE | {"memory": MORE_MEMORY_WHILE_COLD}
        grown = [
            f"{name} grew from {before:g} to {after:g}"
            for name, (before, after) in self.growth().items()
            if after > before + more[name]
        ]
        return [*self.wrong, *grown]


class Soak:
    """The clients, for so many seconds."""

    def __init__(self, server: Running, seconds: float, seed: int) -> None:
        self._server, self._seconds = server, seconds
        self._random = random.Random(seed)
        self._jobs = make_jobs()
        self._right: dict[str, Any] = {}
        self.record = Record()

    async def run(self, clients: int, kill_every: float) -> Record:
        """Everything."""
        session = ClientSession(self._server.url, connector=TCPConnector(limit=0), timeout=ClientTimeout(None))
        async with session:
            await self._learn(session)
            self._end = time.monotonic() + self._seconds
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(self._ask(session))
                group.create_task(self._leave(session))
                group.create_task(self._be_hostile())
                group.create_task(self._kill(kill_every))
                group.create_task(self._sample())
            await self._look_at_idle(session)
        return self.record

    @property
    def _going(self) -> bool:
        return time.monotonic() < self._end and self._server.alive

    async def _learn(self, session: ClientSession) -> None:
        """Ask for each answer twice, one after the other."""
        for job in self._jobs:
            self._right[job.name] = await self._answer(session, job)
        for job in self._jobs:
            await self._compare(session, job)
        if self.record.wrong:
            sys.exit("without any load:\n" + "\n".join(self.record.wrong))

    async def _ask(self, session: ClientSession) -> None:
        while self._going:
            await self._compare(session, self._random.choice(self._jobs))

    async def _compare(self, session: ClientSession, job: Job) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._answer(session, job)
        except TimeoutError:
            self.record.wrong.append(f"{job.name}: no answer within {PATIENCE:g} s")
        except (OSError, ClientError, ValueError, LookupError) as error:
            self.record.wrong.append(f"{job.name}: {type(error).__name__}: {error}")
        else:
            self.record.answers[job.name] += 1
            if found != self._right[job.name]:
                self.record.wrong.append(f"{job.name}: {json.dumps(found)[:1500]} is not the idle server's answer")
        self.record.longest = max(self.record.longest, time.monotonic() - started)

    async def _answer(self, session: ClientSession, job: Job) -> Any:
        """Retries as the server tells to. Raises ValueError for an answer that is an error."""
        while True:
            async with session.post(job.path, json=job.body) as response:
                answer = await response.text()
            if response.status == 200:
                return job.fold(answer)
            if response.status not in (429, 503) or "Retry-After" not in response.headers:
                raise ValueError(f"{response.status}: {answer[:500]}")
            self.record.retries[f"{response.status}"] += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))

    async def _leave(self, session: ClientSession) -> None:
        """Open streams, and close them after a few bytes or none."""
        streams = [job for job in self._jobs if job.streamed]
        while self._going:
            job = self._random.choice(streams)
            try:
                async with asyncio.timeout(PATIENCE), session.post(job.path, json=job.body) as response:
                    await response.content.read(self._random.choice((0, 1, 2000, 10_000)))
                    response.close()
                self.record.left += 1
            except (OSError, ClientError, TimeoutError) as error:
                self.record.wrong.append(f"leaving {job.name}: {type(error).__name__}: {error}")
            await asyncio.sleep(self._random.random() / 5)

    async def _be_hostile(self) -> None:
        while self._going:
            case = self._random.choice(HOSTILE)
            found = await case.attack(self._server, case.sizes[0])
            self.record.hostile += found
            if any(status.startswith("5") and status != "503" for status in found):
                self.record.wrong.append(f"hostile {case.name}: {dict(found)}")
            await asyncio.sleep(0.5)

    async def _kill(self, every: float) -> None:
        while self._going:
            await asyncio.sleep(min(every, max(0.0, self._end - time.monotonic())))
            if self._going and self._server.workers:
                os.kill(self._random.choice(self._server.workers), signal.SIGKILL)
                self.record.kills += 1

    async def _sample(self) -> None:
        started, server = time.monotonic(), self._server
        while self._going:
            numbers = (server.memory, server.descriptors, server.threads, server.worker_memory, server.others_memory)
            self.record.samples.append(Sample(time.monotonic() - started, *numbers))
            await asyncio.sleep(SAMPLE_PERIOD)

    async def _look_at_idle(self, session: ClientSession) -> None:
        """Nothing runs, waits or holds blocks any more, within a while."""
        if not self._server.alive:
            self.record.wrong.append("the server ended")
            return
        busy: list[str] = []
        for _ in range(60):
            async with session.get("/requests") as response:
                requests = (await response.json())["requests"]
            async with session.get("/metrics") as response:
                text = await response.text()
            gauges = re.findall(r"^vllm:(num_requests_\w+|kv_cache_usage_perc)\{.*\} (.+)$", text, re.M)
            busy = [f"{name} {value}" for name, value in gauges if float(value)] + [f"{len(requests)} listed"][
                not requests :
            ]
            if not busy:
                return
            await asyncio.sleep(0.5)
        self.record.wrong.append(f"the server is not idle in the end: {', '.join(busy)}")


def report(record: Record) -> str:
    """What happened, in a few lines."""
    named = lambda counter: ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"  # noqa: E731
    lines = [
        f"{record.answers.total()} answers were compared; the longest took {record.longest:.1f} s.",
        f"{record.left} streams were left, {record.kills} workers killed.",
        f"Retried: {named(record.retries)}. Hostile clients got: {named(record.hostile)}.",
    ]
    for name, (before, after) in record.growth().items():
        lines.append(f"{name} of the server: {before:.1f} in the second third, {after:.1f} in the last")
    last = record.samples[-1]
    lines.append(f"memory of the workers {last.workers:.0f} MiB, of other processes {last.others:.0f} MiB")
    faults = record.faults()
    lines += [f"{len(faults)} faults", *faults[:50]] if faults else ["nothing lost, nothing wrong, nothing grew"]
    return "\n".join(lines)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="(default: demo)")
    parser.add_argument("--minutes", type=float, default=30, help="(default: 30)")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="(default: 1)")
    parser.add_argument("--clients", type=int, default=8, help="that wait for whole answers (default: 8)")
    parser.add_argument("--kill-every", type=float, default=20, help="seconds (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of what is chosen when (default: 0)")
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "soak.log", help="the server's")
    options = parser.parse_args()
    ranks = options.tensor_parallel_size
    print(f"{cpu_model()}, commit {commit()}, {options.minutes:g} minutes, {ranks} rank(s)", flush=True)
    with running(options.model, [*OPTIONS, "--tensor-parallel-size", str(ranks)], options.log) as server:
        soak = Soak(server, 60 * options.minutes, options.seed)
        record = asyncio.run(soak.run(options.clients, options.kill_every))
    print(report(record))
    if options.json:
        options.json.write_text(json.dumps(asdict(record)))
    sys.exit(bool(record.faults()))


if __name__ == "__main__":
    main()
