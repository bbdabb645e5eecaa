"""A model whose layers are split over stages gives what one stage gives, to the last bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve import LLM, SamplingParams
from sophserve.errors import ConfigError
from sophserve.sampling import StructuredOutput
from tests.further_layer import with_further_layer
from tests.hosts import streams
from tests.serving.test_speculation import plain_and_guessed

LONG = "A server takes requests, " * 5
PROMPTS = ["The quick brown fox", "人工智能正在", "x", LONG, LONG + "and answers them. "]
SHAPE = StructuredOutput("regex", "[a-d]{9}")
WAYS: list[dict[str, Any]] = [
    {"temperature": 0, "ignore_eos": True, "prompt_logprobs": 1},
    {"temperature": 1, "ignore_eos": True, "seed": 3, "repetition_penalty": 1.1, "n": 2},
    {"temperature": 0.8, "seed": 5, "structured": SHAPE},
]
# Each of two ranks has whole groups of 128 codes.
WIDE = {"hidden_size": 256, "intermediate_size": 256}


def answers(directory: Path, preempting: bool = False, **options: Any) -> list[object]:
    """To all prompts in every way, in pieces and beside each other, and once more with what the prefix cache has."""
    with LLM(str(directory), max_num_batched_tokens=48, max_model_len=160, **options) as llm:
        found = [
            [result.prompt_logprobs, *((each.token_ids, each.logprobs, each.text) for each in result.outputs)]
            for way in (*WAYS, WAYS[0])
            for result in llm.generate(PROMPTS, SamplingParams(max_tokens=24, logprobs=2, **way), use_tqdm=False)
        ]
        stats = llm._llm.engine._scheduler.stats
        assert stats.prefix_hits and (stats.preemptions > 0) == preempting
    return found


def test_stages_give_the_bits_of_one(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint("qwen2", tie_word_embeddings=True, dtype="bfloat16")
    # Where it is tight every stage has the blocks of the one with the fewest.
    stages = answers(directory, preempting=True, pipeline_parallel_size=3, kv_cache_memory="26KiB")
    assert stages == answers(directory)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("qwen2", {}, {"enforce_eager": True}),
        ("qwen2", {"tie_word_embeddings": True}, {"head_bits": 8, "dtype": "bfloat16"}),
        ("qwen2", WIDE, {"quantization": "gptq", "activation_bits": 8, "dtype": "bfloat16"}),
        ("qwen2", WIDE, {"quantization": "fp8"}),
        ("qwen3_moe", {"num_hidden_layers": 3}, {}),
        ("deepseek_v3", {}, {"dtype": "bfloat16"}),
    ],
    ids=["dense", "tied", "gptq", "fp8", "experts", "latent"],
)
def test_stages_of_ranks(
    kind: str,
    shape: dict[str, Any],
    options: dict[str, Any],
    stages: int,
    ranks: int,
    make_checkpoint: Callable[..., Path],
) -> None:
    directory, options = make_checkpoint(kind, **shape), {**options, "tensor_parallel_size": ranks}
    expected = answers(directory, **options)
    for _ in range(2):  # the second time packed weights come from their cache
        assert answers(directory, **options, pipeline_parallel_size=stages) == expected


@pytest.mark.slow
@pytest.mark.parametrize("lose_worker", [False, True])
@pytest.mark.parametrize("speculation", ["lookup", "mtp"])
def test_guesses(speculation: str, lose_worker: bool, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint("qwen2")
    if speculation == "mtp":
        directory = with_further_layer(make_checkpoint("deepseek_v3"), tmp_path / "model", agreeing=0.01)
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    # Beside each other they are computed by both stages at the same time, without guesses.
    asyncio.run(plain_and_guessed(directory, lose_worker, together=False, speculation=speculation, **sizes))


@pytest.mark.slow
def test_vectors(make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]) -> None:
    directory = make_checkpoint("qwen2")
    found = [
        start_server(directory, "-pp", stages).client().embeddings.create(model="tiny", input=PROMPTS)
        for stages in ("1", "3")
    ]
    assert [each.embedding for each in found[0].data] == [each.embedding for each in found[1].data]


@pytest.mark.parametrize("ranks", [(3,), pytest.param((0, 1, 2), marks=pytest.mark.slow)], ids=str)
def test_a_lost_worker_of_any_stage(
    ranks: tuple[int, ...], make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2"), "-tp", "2", "-pp", "2")
    undisturbed = asyncio.run(streams(server.url))
    for rank in ranks:
        workers = sorted(server.workers, key=lambda worker: worker.pid)
        assert len(workers) == 4
        assert asyncio.run(streams(server.url, workers[rank].kill)) == undisturbed
        assert not set(workers) & set(server.workers)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_stage_that_stands_still(
    rank: int, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    """It is found, although others go on for as many plans as they have."""
    server = start_server(make_checkpoint("qwen2"), "-pp", "3", "--step-timeout", "1")
    undisturbed = asyncio.run(streams(server.url))
    still = sorted(server.workers, key=lambda worker: worker.pid)[rank]
    assert asyncio.run(streams(server.url, still.suspend)) == undisturbed
    assert still not in server.workers


@pytest.mark.parametrize(
    ("kind", "stages", "problem"),
    [
        ("qwen2", 4, "the model has 3 layers, of which each stage needs one; lower it to at most 3"),
        ("qwen2_5_vl", 2, "models that see images have one stage; leave out --pipeline-parallel-size"),
    ],
)
def test_what_cannot_be_split(kind: str, stages: int, problem: str, make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=problem):
        LLM(str(make_checkpoint(kind)), pipeline_parallel_size=stages)
