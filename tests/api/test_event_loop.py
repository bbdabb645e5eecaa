"""The event loop stands still for nobody: bodies that are hard to work on, at every endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.loop_probe import MOST_SECONDS, LoopProbe

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def different(count: int, length: int) -> list[str]:
    return [f"{number:04}".ljust(length, "a") for number in range(count)]


# Path, body, and the field that a refusal names; None for those that must be served.
HOSTILE: dict[str, tuple[str, bytes, str | None]] = {
    "a long stop": (TEXT, body(prompt="hi", n=128, max_tokens=1, stop="a" * 20_000), "stop"),
    "long stops": (CHAT, body(messages=HELLO, n=128, max_tokens=1, stop=different(4, 20_000)), "stop"),
    "long stops of a response": (RESPONSES, body(input="hi", stop=different(64, 100_000)), "stop"),
    "long stop sequences": (
        MESSAGES,
        body(messages=HELLO, max_tokens=1, stop_sequences=different(64, 100_000)),
        "stop_sequences",
    ),
    "many stops": (TEXT, body(prompt="hi", n=128, max_tokens=100, stop=different(60, 100)), None),
    "long bad words": (TEXT, body(prompt="hi", n=128, max_tokens=1, bad_words=different(100, 2000)), "bad_words"),
    "many bad words": (TEXT, body(prompt="hi", n=128, max_tokens=1, bad_words=different(100, 60)), None),
}


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


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_loop_goes_on(app: Any, name: str) -> None:
    path, data, wrong = HOSTILE[name]
    async with LoopProbe() as probe, app.http.post(path, data=data) as response:
        answer = await response.read()
    assert probe.longest < MOST_SECONDS
    if wrong is None:
        assert response.status == 200, answer
    else:
        error = json.loads(answer)["error"]
        assert response.status == 400 and wrong in error["message"] and error.get("param", wrong) == wrong
