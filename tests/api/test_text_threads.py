"""Who is next when work on texts waits."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from sophserve.api.http.request_record import Record, current_record
from sophserve.api.http.text_threads import INLINE, SHORT, TextThreads


async def test_the_order_of_what_waits() -> None:
    texts, hold, order = TextThreads(), threading.Event(), []

    def ask(name: str, size: int, account: Any = None) -> asyncio.Task[None]:
        current_record.set(Record(time.monotonic(), "/", account=account, body_bytes=size))
        return asyncio.create_task(texts.run(lambda: order.append(name)))

    current_record.set(Record(time.monotonic(), "/", body_bytes=SHORT))
    first = asyncio.create_task(texts.run(hold.wait))
    await asyncio.sleep(0.01)
    greedy = [ask("greedy", 40_000, "one key") for _ in range(3)]
    left = ask("left", 20_000)
    waiting = [*greedy, ask("other", 60_000, "another key"), ask("small", 11_000)]
    await asyncio.sleep(0.01)
    left.cancel()
    long = ask("long", SHORT + 1)
    await long  # it has a thread of its own
    await ask("tiny", INLINE)
    hold.set()
    await asyncio.gather(first, *waiting)
    assert order == ["long", "tiny", "small", "greedy", "other", "greedy", "greedy"]
    texts.close()
