"""While one client is hostile, a process beside it reads its stream and asks /health as if nothing were."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.bystander import Noticed, bystander
from benchmarks.hostile import CASES, PLAIN
from benchmarks.running import Running

# Seconds. What is right is a tenth of them; each of the cases took several times as long when all was done on the loop.
LONGEST = 1.0

# The sizes are far above what needs an answer, so that a busy machine and a stall can be told apart.
SIZES = {
    "stop: one long text, n=128": 100_000,
    "bad_words: long": 300_000,
    "prompts: many texts": 1200,
    "unknown field: lists": 4_000_000,
    "apply-template": 500_000,
    "allowed_token_ids, n=32": 250,
    "prompt_logprobs, 20 prompts": 1500,
    "logprobs, big n": 64,
    "messages: empty ones, Responses": 1_000_000,
    "tokenize, twice": 8 << 20,
}


@pytest.fixture(scope="module")
def server(make_checkpoint: Callable[..., Path], server_class: type) -> Iterator[Running]:
    server = server_class("--model", str(make_checkpoint("qwen2", max_position_embeddings=2048)))
    try:
        server.wait_until_ready()
        yield Running(server.url, server.process.pid)
        assert server.stop() == 0
        assert "Traceback" not in "".join(server.log)
    finally:
        server.process.kill()


async def noticed(server: Running, name: str, size: int) -> Noticed:
    case = next(case for case in [PLAIN, *CASES] if case.name == name)
    async with bystander(server.url) as others:
        await others.noticed()
        async with asyncio.timeout(100):
            await case.attack(server, size)
        await asyncio.sleep(0.5)
        return await others.noticed()


# Of these tests/api/test_event_loop.py sees, too, that nothing is done on the loop.
LIKE_OTHERS = ("apply-template", "allowed_token_ids, n=32", "logprobs, big n", "messages: empty ones, Responses")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_OTHERS else name for name in SIZES]
)
async def test_nobody_waits_for_a_hostile_client(name: str, server: Running) -> None:
    found = await noticed(server, name, SIZES[name])
    assert found.health < LONGEST and found.worst < LONGEST and found.newcomer < 3 * LONGEST, found
    assert found.newcomers_served and not found.problems, found


async def test_the_bystander_sees_who_stands_still(server: Running) -> None:
    async with bystander(server.url) as others:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await others.noticed()
            time.sleep(0.7)
            found = await others.noticed()
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert found.worst > 0.5 and found.health > 0.5 and found.newcomer > 0.1
