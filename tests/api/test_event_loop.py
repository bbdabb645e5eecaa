"""The event loop stands still for nobody: bodies that are hard to work on, at every endpoint."""

from __future__ import annotations

import asyncio
import json
import time

from tests.loop_probe import LoopProbe


async def test_the_probe_sees_work_on_the_loop_and_calls_that_hold_the_lock() -> None:
    async with LoopProbe() as probe:
        sum(range(10**7))
    assert probe.longest > 0.02
    numbers = json.dumps(list(range(2 * 10**6)))
    async with LoopProbe() as probe:
        await asyncio.to_thread(json.loads, numbers)
    assert probe.longest > 0.02


async def test_the_probe_does_not_see_waiting() -> None:
    async with LoopProbe() as probe:
        await asyncio.to_thread(time.sleep, 0.1)
        time.sleep(0.1)  # as another process would hold it up
    assert probe.longest < 0.02
