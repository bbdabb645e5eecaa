"""Guesses change no bit of what is served, on several ranks, over HTTP, and when a worker is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from sophserve import AsyncLLM, SamplingParams
from sophserve.llm import RequestOutput
from tests.eagle_heads import write_head
from tests.further_layer import with_further_layer
from tests.worker.test_draft_model import like
from tests.worker.test_eagle3 import TOKENS

PROMPTS = [[(7 * index * index + number * index) % 500 for index in range(40)] for number in (3, 5, 11)]


def params(number: int, **options: Any) -> SamplingParams:
    temperature = (0.0, 0.7, 1.5)[number]
    return SamplingParams(temperature=temperature, seed=number, max_tokens=50, ignore_eos=True, logprobs=1, **options)


def bits(result: RequestOutput) -> list[object]:
    output = result.outputs[0]
    entries = [{token: entry.logprob for token, entry in each.items()} for each in output.logprobs or []]
    return [output.token_ids, entries, output.text]


async def plain_and_guessed(
    directory: Path,
    lose_worker: bool = False,
    least: int = 30,
    allowed: list[int] | None = None,
    together: bool = True,
    **options: Any,
) -> None:
    """Answers without guesses, and with them, beside each other or not; the latter as they grow."""
    before = set(psutil.Process().children(recursive=True))
    llm = AsyncLLM(str(directory), kv_cache_memory="8MiB", **options)

    async def answer(number: int, **options: Any) -> list[list[object]]:
        return [
            bits(each)
            async for each in llm.generate(PROMPTS[number], params(number, allowed_token_ids=allowed, **options))
        ]

    async with llm:
        children = set(psutil.Process().children(recursive=True)) - before
        plain = [(await answer(number, speculative_tokens=0))[-1] for number in range(3)]
        assert not llm.engine.metrics.counts.drafts
        told = [[*each[0]] for each in plain]
        told[1][20:22] = [3]
        if options.get("speculation") in ("mtp", "draft"):
            told = [[]] * 3
        turns = asyncio.Semaphore(3 if together else 1)

        async def guessed(number: int) -> list[list[object]]:
            async with turns:
                return await answer(number, prediction=told[number])

        guessing = asyncio.gather(*map(guessed, range(3)))
        if lose_worker:
            while not llm.engine.metrics.counts.accepted_tokens:
                await asyncio.sleep(0.001)
            next(child for child in children if "sophserve.worker.process" in child.cmdline()).kill()
        for number, states in enumerate(await guessing):
            assert states[-1] == plain[number]
            for ids, entries, text in states:
                assert ids == plain[number][0][: len(ids)] and entries == plain[number][1][: len(ids)]
                assert plain[number][2].startswith(text)
        assert llm.engine.metrics.counts.accepted_tokens > least
        assert not lose_worker or llm.engine.workers.restarts == 1


def test_on_two_ranks(make_checkpoint: Callable[..., Path]) -> None:
    asyncio.run(plain_and_guessed(make_checkpoint("qwen2"), tensor_parallel_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("lose_worker", [False, True])
def test_by_the_models_own_layer_on_two_ranks(
    make_checkpoint: Callable[..., Path], tmp_path: Path, lose_worker: bool
) -> None:
    directory = with_further_layer(make_checkpoint("deepseek_v3"), tmp_path / "model", agreeing=0.01)
    asyncio.run(plain_and_guessed(directory, lose_worker, speculation="mtp", tensor_parallel_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("lose_worker", [False, True])
def test_by_a_smaller_model_on_two_ranks(
    make_checkpoint: Callable[..., Path], tmp_path: Path, lose_worker: bool
) -> None:
    """Of the first of many layers, of which the others hardly change anything."""
    source = make_checkpoint("qwen2", initializer_range=0.2, num_hidden_layers=12)
    directory = like(source, tmp_path / "model", 0.0)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) and ".layers.0." not in name:
            tensor *= 0.01
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    smaller = like(directory, tmp_path / "smaller", 0.0, num_hidden_layers=1, layer_types=None)
    first = {name: each for name, each in tensors.items() if ".layers." not in name or ".layers.0." in name}
    save_file(first, smaller / "model.safetensors", metadata={"format": "pt"})
    options = {"speculation": "draft", "speculative_model": str(smaller)}
    asyncio.run(plain_and_guessed(directory, lose_worker, 10, tensor_parallel_size=2, **options))


@pytest.mark.slow
def test_by_a_head_on_two_ranks(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Which can say the only four tokens that answers may have."""
    directory = make_checkpoint("qwen2")
    head = write_head(directory, tmp_path / "head", tokens=TOKENS)
    options: dict[str, Any] = {"speculation": "draft", "speculative_model": str(head), "tensor_parallel_size": 2}
    asyncio.run(plain_and_guessed(directory, least=0, allowed=TOKENS, **options))


def test_a_lost_worker_costs_nothing_but_guesses(make_checkpoint: Callable[..., Path]) -> None:
    asyncio.run(plain_and_guessed(make_checkpoint("qwen2"), lose_worker=True))
