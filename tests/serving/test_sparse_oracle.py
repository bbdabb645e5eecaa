"""Sparse and latent models over HTTP and embedded, on one rank and several, against transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sophserve import LLM
from tests.serving.test_oracle import LENGTHS, NEW_TOKENS, check_answer, check_embedded, check_prompt, expected

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "qwen2-moe": {"kind": "qwen2_moe", "num_hidden_layers": 3, "mlp_only_layers": [1]},
    "qwen3-moe": {"kind": "qwen3_moe", "num_hidden_layers": 3, "decoder_sparse_step": 2},
    "deepseek-v2": {"kind": "deepseek_v2"},
    "deepseek-v2-lite": {
        "kind": "deepseek_v2",
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek-v3": {"kind": "deepseek_v3", "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
}

Oracle = list[tuple[list[int], torch.Tensor]]
"""For each prompt the answer's tokens, and the logprobs after each token of both."""


SLOW = pytest.mark.slow
REST = ["qwen2-moe", "qwen3-moe", "deepseek-v2", "deepseek-v2-lite"]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 512, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=["deepseek-v3", *(pytest.param(case, marks=SLOW) for case in REST)])
def model(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], prompts: list[list[int]]
) -> tuple[Path, Oracle]:
    settings = dict(CASES[request.param])
    directory = make_checkpoint(settings.pop("kind"), **settings)
    return directory, [expected(directory, prompt) for prompt in prompts]


SLOW_RANKS = [1, *(pytest.param(ranks, marks=SLOW) for ranks in (2, 4))]


@pytest.mark.parametrize("ranks", SLOW_RANKS)
def test_http_in_chunks_of_16(
    ranks: int, model: tuple[Path, Oracle], prompts: list[list[int]], start_server: Callable[..., Any]
) -> None:
    directory, oracle = model
    server = start_server(directory, "--tensor-parallel-size", str(ranks), "--max-num-batched-tokens", "16")
    client, tokenizer = server.client(), Tokenizer.from_file(str(directory / "tokenizer.json"))
    for prompt_logprobs in ({"prompt_logprobs": 0}, {}):
        answer = client.completions.create(
            model="tiny",
            prompt=prompts,
            temperature=0,
            max_tokens=NEW_TOKENS,
            logprobs=1,
            extra_body={"min_tokens": NEW_TOKENS, **prompt_logprobs},
        )
        for choice, prompt, (tokens, logprobs) in zip(answer.choices, prompts, oracle, strict=True):
            check_answer(choice, prompt, tokens, logprobs, tokenizer)
            if prompt_logprobs:
                check_prompt(choice, prompt, logprobs)
    # The second time the beginnings of the longer prompts came from the cache.
    assert answer.usage.prompt_tokens_details.cached_tokens >= 16 + 48


@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=SLOW) for ranks in (1, 4))])
def test_embedded_in_chunks_of_100_without_a_cache(
    ranks: int, model: tuple[Path, Oracle], prompts: list[list[int]]
) -> None:
    directory, oracle = model
    options = {"tensor_parallel_size": ranks, "max_num_batched_tokens": 100, "enable_prefix_caching": False}
    with LLM(str(directory), **options) as llm:
        check_embedded(llm, prompts, oracle)


def test_a_router_of_nan_stops_nobody(
    make_checkpoint: Callable[..., Path], tmp_path: Path, start_server: Callable[..., Any]
) -> None:
    """As with any other weight that is no number, the answers say nothing, and logprobs are null."""
    directory = shutil.copytree(make_checkpoint("deepseek_v3"), tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.gate.weight"].fill_(float("nan"))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    server = start_server(directory)
    for _ in range(2):
        answer = server.client().completions.create(
            model="tiny", prompt=[list(range(5, 60)), [7]], max_tokens=4, logprobs=1, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 8
        assert all(choice.logprobs.token_logprobs == [None] * 4 for choice in answer.choices)
    assert "restarting" not in "".join(server.log)
