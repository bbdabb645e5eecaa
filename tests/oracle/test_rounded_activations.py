"""Layers whose activations are rounded to int8, each row with a scale of its own (compressed-tensors' W8A8), against
transformers with the dequantized weights, which are multiplied by rows that are rounded here by the definition."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_plugins.quantization.compressed_tensors import CompressedTensors
from sophserve.errors import CheckpointError
from sophserve.model.experts import Experts
from tests.oracle.test_quantization import (
    LINEAR,
    PROMPT,
    SHAPE,
    compressed,
    compressed_bytes,
    quantize,
)
from tests.oracle.test_quantized_experts import LINEAR as OF_SPARSE
from tests.oracle.test_quantized_experts import SHAPES
from tests.oracle.test_tensor_parallel import Group, ThreadRank

ROWS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
CASES = {
    "channels": compressed_bytes(activations=ROWS),
    "groups": compressed_bytes(64, activations=ROWS),
    "zero points": compressed_bytes(symmetric=False, activations=ROWS),
    "4 bits": compressed_bytes(32, bits=4, activations=ROWS),
}


def rounded(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    codes = (x / scale.clamp(min=1e-30)).clamp(-128, 127).round()
    return codes * scale


@torch.inference_mode()
def expected_logprobs(directory, ranks):
    """Of each token alone, so that a value that falls to the other side of two codes changes no other token's. Between
    ranks a row of what is split by inputs is in parts, each with a scale of its own."""
    model = AutoModelForCausalLM.from_pretrained(directory)

    def hook(parts):
        return lambda module, given: torch.cat([rounded(part) for part in given[0].chunk(parts, -1)], -1)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(hook(ranks if re.search("(o|down)_proj", name) else 1))
    return model(torch.tensor(PROMPT)[:, None]).logits[:, 0].log_softmax(-1)


def logprobs_of_each(open_model, directory, ranks=1, **options):
    group = Group(ranks)

    def run(rank):
        model = open_model(directory, communicator=ThreadRank(group, rank), **options)
        logits = model.step({number: [token] for number, token in enumerate(PROMPT)})
        return torch.cat([logits[number] for number in range(len(PROMPT))]).log_softmax(-1)

    with ThreadPoolExecutor(ranks) as pool:
        return next(iter(pool.map(run, range(ranks))))


@pytest.mark.parametrize("case", CASES)
def test_each_row_has_a_scale(case, make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("qwen2", **SHAPE), tmp_path, *CASES[case], LINEAR.fullmatch)
    target = tmp_path / "quantized"
    one, two = (expected_logprobs(tmp_path / "exact", ranks) for ranks in (1, 2))
    for ranks, expected in ((1, one), (2, two)):
        off = (logprobs_of_each(open_model, target, ranks) - expected).abs().amax(-1)
        assert off.median() < 1e-5 and off.max() < 5e-2, ranks
    off = (logprobs_of_each(open_model, target, dtype=torch.bfloat16) - one).abs().amax(-1)
    assert off.median() < 0.1
    # And it is seen.
    path = target / "config.json"
    path.write_text(path.read_text().replace(json.dumps(ROWS), "null"))
    off = (logprobs_of_each(open_model, target) - one).abs().amax(-1)
    assert off.median() > 3e-3


@pytest.mark.parametrize(
    "change",
    [
        {"dynamic": False, "strategy": "tensor"},
        {"strategy": "tensor"},
        {"strategy": "group"},
        {"symmetric": False},
        {"num_bits": 4},
    ],
)
def test_other_activations_are_refused(change):
    config = compressed_bytes(activations={**ROWS, **change})[1]
    with pytest.raises(
        CheckpointError, match="int weights and activations of int, 8 bits, token, symmetric, dynamic: true"
    ):
        CompressedTensors(config)


def test_groups_that_blocks_do_not_fill_are_refused(make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("qwen2", **SHAPE), tmp_path, *compressed_bytes(16, activations=ROWS), LINEAR.fullmatch)
    with pytest.raises(CheckpointError, match="has groups of 16 inputs; of layers whose activations are rounded they"):
        open_model(tmp_path / "quantized")


def test_float8_activations_are_taken_as_they_are():
    config = compressed(64)[1]
    config["config_groups"]["group_0"]["input_activations"] = {**ROWS, "type": "float"}
    CompressedTensors(config)


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3"])
def test_experts_and_latents(kind, make_checkpoint, open_model, tmp_path, monkeypatch):
    """The kernels against the reference operators; what makes keys and values of latents rounds nothing."""
    quantize(make_checkpoint(kind, **SHAPES[kind]), tmp_path, *CASES["channels"], OF_SPARSE.fullmatch)
    found = logprobs_of_each(open_model, tmp_path / "quantized")
    monkeypatch.setenv("CMODEL_FAST_EXEC", "0")
    reference = open_model(tmp_path / "quantized")
    experts = [module.weight for module in reference.model.modules() if isinstance(module, Experts)]
    assert {each.canonical.activations for weight in experts for each in (*weight.gate_up, *weight.down)} == {"rows"}
    off = (found - logprobs_of_each(open_model, tmp_path / "quantized")).abs().amax(-1)
    assert off.median() < 1e-4
