"""Many clients at once get what each gets alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector
from openai import AsyncOpenAI, OpenAI


def options(number: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": f"{number} The quick brown fox " * (1 + number % 5),
        "max_tokens": 5 + 4 * number,
        "temperature": 0 if number % 2 else 1,
        "seed": number,
        "logprobs": 2,
        "extra_body": {"ignore_eos": True},
    }


def test_sixteen_streams_of_different_lengths(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("llama", dtype="bfloat16"), "--max-num-batched-tokens", "64")
    client: OpenAI = server.client()
    alone = [client.completions.create(**options(number)).choices[0] for number in range(16)]

    async def stream(number: int) -> tuple[str, list[float], str | None]:
        text, logprobs, reason = "", [], None
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            async for chunk in await client.completions.create(**options(number), stream=True):
                choice = chunk.choices[0]
                text += choice.text
                logprobs += choice.logprobs.token_logprobs if choice.logprobs else []
                reason = choice.finish_reason or reason
        return text, logprobs, reason

    async def everyone() -> list[tuple[str, list[float], str | None]]:
        return await asyncio.gather(*(stream(number) for number in range(16)))

    for number, (text, logprobs, reason) in enumerate(asyncio.run(everyone())):
        assert text == alone[number].text
        assert logprobs == alone[number].logprobs.token_logprobs
        assert reason == alone[number].finish_reason == "length"


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_streams_and_some_that_nobody_reads(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], count: int
) -> None:
    server = start_server(make_checkpoint("llama", dtype="bfloat16"), "--max-num-seqs", str(count))
    body = {"prompt": [70, 71, 72], "max_tokens": 40, "ignore_eos": True, "stream": True}
    # More than the sockets' buffers take.
    long = body | {"max_tokens": 250, "logprobs": 20, "n": 8}

    async def read(session: ClientSession, number: int) -> int:
        prompt = [70 + number % 400, 71, 72]
        async with session.post("/v1/completions", json=body | {"prompt": prompt}) as response:
            events = (await response.text()).split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return sum(len(json.loads(event[6:])["choices"]) for event in events[:-2])

    async def everyone() -> int:
        no_limit = TCPConnector(limit=0)
        async with ClientSession(
            server.url, connector=no_limit, timeout=ClientTimeout(120), read_bufsize=1024
        ) as session:
            unread = [await session.post("/v1/completions", json=long) for _ in range(2)]
            chunks = await asyncio.gather(*(read(session, number) for number in range(count)))
            assert min(chunks) > 2
            memory = psutil.Process(server.process.pid).memory_info().rss
            for response in unread:
                assert (await response.text()).endswith("data: [DONE]\n\n")
            return memory

    assert asyncio.run(everyone()) < 600 << 20
