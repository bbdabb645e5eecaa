"""Whole models on the emulator against transformers, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from device.tpuv7.device import Tpuv7Device
from tests.oracle.conftest import open_paged_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 2}),
    "qwen2": ("qwen2", {"num_hidden_layers": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_hidden_layers": 2, "head_dim": 32}),
}
MORE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama no gqa": ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    "qwen2 window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_key_value_heads": 1},
    ),
}
# Of the largest logprob: transformers in bfloat16 is off by up to 4e-2 of it from itself in float32.
TOLERANCE = 3e-2


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_CASES)])
def test_logprobs_and_tokens_equal_transformers(
    case: str, tpuv7: Tpuv7Device, make_checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    kind, overrides = (CASES | MORE_CASES)[case]
    directory = make_checkpoint(kind, **overrides)
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager").float()
    model = open_paged_model(directory, torch.bfloat16, device=tpuv7)
    on_cmodel = open_paged_model(directory, torch.bfloat16)
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, 512, (length,), generator=generator).tolist() for length in (1, 34)]
    errors = []
    for prompt in prompts:
        expected = _logprobs(oracle, prompt)
        error, usual = (each.logprobs(prompt, chunk=16).sub(expected).abs() for each in (model, on_cmodel))
        assert error.max() < TOLERANCE * expected.abs().max()
        errors.append((float(error.mean()), float(usual.mean())))
    assert sum(error for error, _ in errors) < 1.25 * sum(usual for _, usual in errors)
    for prompt, answer in zip(prompts, model.generate(prompts, 4, chunk=16), strict=True):
        logprobs = _logprobs(oracle, prompt + answer)[len(prompt) - 1 : -1]
        # A token may differ only where two are as good as equal.
        chosen = logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logprobs.max(-1).values - chosen < TOLERANCE * logprobs.abs().max()).all()


@torch.no_grad()
def _logprobs(oracle: Any, ids: list[int]) -> torch.Tensor:
    logprobs: torch.Tensor = oracle(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logprobs
