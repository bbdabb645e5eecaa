"""Many clients at once get what each gets alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
