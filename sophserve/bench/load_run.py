"""Sends requests at a rate or so many at a time, and keeps what became of them, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from tqdm import tqdm

from sophserve.bench.load_client import INTERRUPTED, NO_CONNECTION, Client, Prompt
from sophserve.bench.load_metrics import Outcome

# So many requests in a row that find nobody mean that the server has gone.
MOST_REFUSED = 5
REFRESH = 0.5


def arrivals(rate: float | None, burstiness: float, chance: random.Random) -> Iterator[float]:
    """When requests are due, in seconds: at once, or at a rate with gamma-distributed gaps. Burstiness 1 is a Poisson
    process, less is burstier, more is steadier."""
    due = 0.0
    while True:
        yield due
        if rate is not None:
            due += chance.gammavariate(burstiness, 1 / (rate * burstiness))


class LoadRun:
    """A run over prompts. outcomes: one for each request, in the order of sending; stopped: why it ended early."""

    def __init__(
        self,
        client: Client,
        prompts: Iterable[Prompt],
        due: Iterable[float],
        concurrency: int | None,
        duration: float | None = None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.stopped = ""
        self._client = client
        self._schedule = zip(prompts, due, strict=False)
        self._places = asyncio.Semaphore(concurrency or 2**31)
        self._duration = duration
        self._running: dict[asyncio.Task[None], Outcome] = {}
        self._tokens = 0
        self._failed = 0
        self._refused = 0

    async def run(self, total: int | None) -> None:
        """Until every request has its outcome. Ctrl-C ends the run; so does a server that cannot be reached. total: how
        many there are, if known."""
        self._begin = time.perf_counter()
        self._sender = asyncio.create_task(self._send())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        self._bar = tqdm(total=total, unit=" requests", disable=None)
        progress = asyncio.create_task(self._show_progress())
        try:
            with suppress(asyncio.CancelledError):
                await self._sender
            for task in list(self._running):
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            progress.cancel()
            for outcome in self._running.values():
                # Ended before it began.
                outcome.error, outcome.message, outcome.finished = *INTERRUPTED, outcome.sent
            self._running.clear()
            self._show()
            self._bar.close()

    async def _send(self) -> None:
        for prompt, due in self._schedule:
            await asyncio.sleep(self._begin + due - time.perf_counter())
            await self._places.acquire()
            if self._duration is not None and time.perf_counter() - self._begin >= self._duration:
                return
            outcome = Outcome(time.perf_counter())
            self.outcomes.append(outcome)
            self._running[asyncio.create_task(self._one(prompt, outcome))] = outcome

    async def _one(self, prompt: Prompt, outcome: Outcome) -> None:
        try:
            await self._client.ask(prompt, outcome)
        finally:
            self._places.release()
        del self._running[asyncio.current_task()]  # type: ignore[arg-type]
        self._tokens += outcome.tokens
        self._failed += bool(outcome.error)
        self._refused = self._refused + 1 if outcome.error == NO_CONNECTION else 0
        if self._refused == MOST_REFUSED:
            self.stopped = f"the server has gone: {outcome.message}"
            self._sender.cancel()

    def _interrupt(self) -> None:
        self.stopped = "interrupted"
        self._sender.cancel()
        for task in self._running:
            task.cancel()

    async def _show_progress(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(REFRESH)

    def _show(self) -> None:
        tokens = self._tokens + sum(len(outcome.times) for outcome in self._running.values())
        rate = tokens / (time.perf_counter() - self._begin)
        self._bar.n = len(self.outcomes) - len(self._running)
        self._bar.set_postfix_str(f"{len(self._running)} running, {self._failed} failed, {rate:.0f} tokens/s")
