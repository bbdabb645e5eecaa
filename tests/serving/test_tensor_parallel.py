"""Several ranks give what one gives, and are refused where a model does not divide."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI

from sophserve import LLM, SamplingParams
from sophserve.errors import ConfigError

PROMPTS = ["The quick brown fox", "人工智能正在", "x", "A server takes requests, " * 5]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2, prompt_logprobs=0)


SAMPLED = SamplingParams(temperature=1, seed=3, max_tokens=30, ignore_eos=True, repetition_penalty=1.1)


def answers(directory: Path, **options: Any) -> tuple[list[list[int]], list[float], list[list[int]]]:
    """Tokens and logprobs of greedy answers, and tokens of sampled ones."""
    with LLM(str(directory), **options) as llm:
        results = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        sampled = [result.outputs[0].token_ids for result in llm.generate(PROMPTS, SAMPLED, use_tqdm=False)]
    tokens = [result.outputs[0].token_ids for result in results]
    logprobs = [
        entries[token].logprob
        for result in results
        for token, entries in zip(
            result.prompt_token_ids + result.outputs[0].token_ids,
            (result.prompt_logprobs or []) + (result.outputs[0].logprobs or []),
            strict=True,
        )
        if entries
    ]
    return tokens, logprobs, sampled


@pytest.mark.parametrize("architecture", ["qwen2", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_ranks_agree_with_one(
    architecture: str, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled tokens, too, reach every rank; which chips they are on changes nothing."""
    directory = make_checkpoint(architecture)
    tokens, logprobs, sampled = answers(directory)
    for ranks, chips in ((2, "5,1"), (4, "0,1,2,3")):
        monkeypatch.setenv("CHIP_MAP", chips)
        tokens_of_ranks, logprobs_of_ranks, sampled_of_ranks = answers(directory, tensor_parallel_size=ranks)
        assert tokens_of_ranks == tokens
        assert logprobs_of_ranks == pytest.approx(logprobs, abs=1e-3)
        assert sampled_of_ranks == sampled


def test_sizes_that_do_not_divide(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"--tensor-parallel-size can be 1, 2, 4"):
        LLM(str(make_checkpoint("qwen2")), tensor_parallel_size=3)


def test_chip_map_must_name_every_rank(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIP_MAP", "5")
    with pytest.raises(ConfigError, match="CHIP_MAP is '5'; it must list at least 2"):
        LLM(str(make_checkpoint("qwen2")), tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("with_signal", "rank"),
    [
        (signal.SIGSTOP, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_costs_no_stream(
    rank: int, with_signal: int, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    options = ["--tensor-parallel-size", "2", "--step-timeout", "1.5", "--speculation", "off"]  # a chunk for each token
    server = start_server(make_checkpoint("qwen2"), *options)
    lost = sorted(server.workers, key=lambda worker: worker.pid)
    assert len(lost) == 2
    chunks = 0

    async def stream(number: int, disturb: bool) -> str:
        nonlocal chunks
        text = ""
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            async for chunk in await client.completions.create(
                model="tiny",
                prompt=f"{number} requests",
                max_tokens=100,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                text += chunk.choices[0].text
                chunks += disturb
                if disturb and chunks == 200:
                    os.kill(lost[rank].pid, with_signal)
        return text

    async def streams(disturb: bool) -> list[str]:
        return await asyncio.gather(*(stream(number, disturb) for number in range(8)))

    undisturbed = asyncio.run(streams(False))
    assert asyncio.run(streams(True)) == undisturbed
    assert chunks > 200
    assert not psutil.wait_procs(lost, timeout=5)[1]
    assert len(server.workers) == 2
