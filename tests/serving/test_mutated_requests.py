"""Thousands of broken requests: each gets a proper answer, nobody waits for them, and the server is what it was."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession, ClientTimeout

from benchmarks.bystander import Noticed, bystander
from sophserve.api.routes import TABLE
from tests.serving.mutations import BODIES, Mutator

# Memory that the server may gain while it is warm: caches of bounded size fill up.
MARGIN = 64 << 20

# Seconds that others may wait: far more than they should, since the tests share the machine.
LONGEST_WAIT = 2.0


def check(path: str, body: bytes, status: int, kind: str, answer: str) -> None:
    """A 2xx, or a 4xx in the error envelope; a stream may end with one."""
    about = f"{path} {body[:2000]!r} {status} {answer[:2000]}"
    assert 200 <= status < 500, about
    if kind.startswith("text/event-stream"):
        assert status == 200 and answer.endswith("\n\n"), about
        events = [event.rpartition("data: ")[2] for event in answer.strip().split("\n\n") if event[0] != ":"]
        if path in ("/v1/completions", "/v1/chat/completions") and '{"error":' not in events[-1]:
            assert events.pop() == "[DONE]", about
        for event in map(json.loads, events):
            if "error" in event and event["error"] is not None:
                assert event["error"]["type"] != "server_error", about
        return
    found = json.loads(answer)
    if status >= 400 and path.startswith("/v1/messages"):
        assert found["type"] == "error" and found["error"].keys() == {"type", "message"}, about
    elif status >= 400:
        assert found["error"].keys() == {"message", "type", "param", "code"}, about
        assert isinstance(found["error"]["message"], str) and len(answer) < 4000, about
    assert status < 400 or found["error"]["message"], about


async def storm(url: str, mutator: Mutator, count: int) -> Counter[int]:
    """How many requests had which status; eight at a time."""
    statuses: Counter[int] = Counter()

    async def client(session: ClientSession, share: int) -> None:
        for _ in range(share):
            path, body = mutator.request()
            async with session.post(path, data=body) as response:
                answer = await response.text()
            statuses[response.status] += 1
            check(path, body, response.status, response.headers["Content-Type"], answer)

    async with ClientSession(url, timeout=ClientTimeout(120)) as session:
        await asyncio.gather(*(client(session, count // 8) for _ in range(8)))
    return statuses


async def noticed(url: str, mutator: Mutator, count: int) -> tuple[Counter[int], Noticed]:
    """The storm's statuses, and what others noticed of it."""
    async with bystander(url) as others:
        await others.noticed()
        return await storm(url, mutator, count), await others.noticed()


@pytest.mark.parametrize(("warm_up", "count"), [(400, 504), pytest.param(3000, 10_000, marks=pytest.mark.slow)])
def test_every_broken_request_has_a_proper_answer(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], warm_up: int, count: int
) -> None:
    posts = {route.path.replace("{id}", "x") for route in TABLE.routes if route.method == "POST"}
    assert posts - {"/ping", "/start_profile", "/stop_profile"} == BODIES.keys()
    options = ["--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--trust-request-chat-template"]
    options += ["--response-store-memory", "1MiB", "--kv-cache-memory", "16MiB"]
    server = start_server(make_checkpoint("qwen2"), *options)
    process, workers = psutil.Process(server.process.pid), server.workers
    asyncio.run(storm(server.url, Mutator(0), warm_up))
    before = process.memory_info().rss
    statuses, others = asyncio.run(noticed(server.url, Mutator(1), count))
    assert sum(statuses.values()) == count and statuses[200] > count / 8 and statuses[400] > count / 5
    assert process.memory_info().rss < before + MARGIN
    assert others.worst < LONGEST_WAIT and others.health < LONGEST_WAIT and not others.problems, others
    assert server.process.poll() is None and set(workers) <= set(server.workers)
    log = "".join(server.log)
    assert "Traceback" not in log and " ERROR " not in log
    answer = server.client().completions.create(model="tiny", prompt="Hi", max_tokens=2)
    assert answer.usage is not None and answer.usage.completion_tokens >= 1
