"""`sophserve plan` of sparse and latent models, against what ranks of them load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sophserve.errors import ConfigError
from sophserve.measure.plan import plan
from sophserve.model.context import ModelContext
from sophserve.model.devices import open_device
from sophserve.model.kv_memory import token_bytes
from sophserve.model.loading import RankOf, load_model
from tests.further_layer import with_further_layer
from tests.oracle.test_quantization import quantize
from tests.oracle.test_quantized_experts import CASES, LINEAR, OF_SPARSE, QUICK, SHAPES
from tests.test_plan import alone, planned

KINDS = ["qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"]


def loaded(directory: Path, ranks: int, quantization: str | None = None) -> int:
    """Bytes of the weights of rank 0."""
    context = ModelContext(open_device("cmodel"), RankOf(ranks), torch.bfloat16, max_positions=16)
    return load_model(directory, context, quantization=quantization, cache_dir=str(directory / "cache")).nbytes


def assert_exact(directory: Path, target: Path, quantization: str | None = None) -> None:
    config = alone(directory, target)
    for ranks in (1, 2):
        options: dict[str, Any] = {"dtype": "bfloat16", "tensor_parallel_size": ranks, "quantization": quantization}
        assert planned(config, **options).weight_bytes == loaded(directory, ranks, quantization), f"{ranks} ranks"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_plain_checkpoints(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, stored: str) -> None:
    assert_exact(make_checkpoint(kind, dtype=stored), tmp_path / "config")


@pytest.mark.parametrize(
    ("kind", "case"),
    [pytest.param(kind, case, marks=[] if case in QUICK else pytest.mark.slow) for kind, case in OF_SPARSE],
)
def test_quantized_checkpoints(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, case: str) -> None:
    write, config = CASES[case]
    if "ignore" in config:
        # As recipes of sparse models have it; else this layer would be quantized.
        config = config | {"ignore": ["lm_head", "re:.*shared_expert_gate$"]}
    quantize(make_checkpoint(kind, **SHAPES[kind], dtype="bfloat16"), tmp_path, write, config, LINEAR.fullmatch)
    assert_exact(tmp_path / "quantized", tmp_path / "config")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("qwen2_moe", "gptq"),
        ("deepseek_v3", "fp8"),
        pytest.param("qwen2_moe", "fp8", marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "gptq", marks=pytest.mark.slow),
    ],
)
def test_quantized_on_loading(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, method: str) -> None:
    assert_exact(make_checkpoint(kind, **SHAPES[kind], dtype="bfloat16"), tmp_path / "config", method)


def test_a_layer_that_predicts_further_tokens(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """By config.json alone, which counts it, and by files that have it, or have none in spite of that."""
    lying = make_checkpoint("deepseek_v3", num_nextn_predict_layers=1, dtype="bfloat16")
    whole = with_further_layer(lying, tmp_path / "whole")
    found = planned(whole)
    assert found == planned(alone(whole, tmp_path / "config"))
    context = ModelContext(open_device("cmodel"), RankOf(1), torch.bfloat16, max_positions=16, mtp=True)
    model = load_model(whole, context)
    assert found.weight_bytes == model.nbytes > loaded(whole, 1)
    assert found.kv_token_bytes == token_bytes(model) == 4 * (32 + 8) * 2
    assert found.parameters > found.active_parameters and found.encoding is None
    for directory, speculation in ((whole, "lookup"), (whole, "off"), (lying, "auto")):
        less = planned(directory, speculation=speculation)
        assert less.weight_bytes == loaded(whole, 1) and less.kv_token_bytes == 3 * (32 + 8) * 2
        assert less.product_flops < found.product_flops


def test_layers_of_equal_sizes_that_are_packed_in_other_ways(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """What makes queries and what makes keys and values has the same shape here, and only one of them is absorbed."""
    sizes = {"q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "kv_lora_rank": 32, "v_head_dim": 8}
    assert_exact(make_checkpoint("deepseek_v3", **sizes, dtype="bfloat16"), tmp_path / "config")


def test_layers_that_only_a_rule_tells_apart(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """GPTQ's `dynamic`: tensors of equal sizes, of which some hold zero points and some do not."""
    symmetric, asymmetric = CASES["gptq"], CASES["gptq asymmetric"]

    def write(name: str, weight: torch.Tensor) -> Any:
        return (asymmetric if "layers.1." in name else symmetric)[0](name, weight)

    config = symmetric[1] | {"dynamic": {r"+:.*layers\.1\.": {"sym": False, "group_size": 32}}}
    source = make_checkpoint("qwen2_moe", **SHAPES["qwen2_moe"], dtype="bfloat16")
    quantize(source, tmp_path, write, config, LINEAR.fullmatch)
    assert_exact(tmp_path / "quantized", tmp_path / "config")


def test_what_a_step_reads(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint("qwen2_moe", moe_intermediate_size=64, dtype="bfloat16")
    found, half = (planned(directory, tensor_parallel_size=ranks) for ranks in (1, 2))
    layers, experts, chosen, hidden, inner = 2, 8, 3, 64, 64
    routed = layers * experts * 3 * hidden * inner * 2
    assert found.weight_bytes == found.step_bytes + routed + 512 * hidden * 2
    # Exactly those that one row goes through; of more, those that one of them at least is expected to.
    assert found.read_bytes(1) - found.step_bytes == routed * chosen // experts
    assert found.read_bytes(2) - found.step_bytes == routed * (1 - (5 / 8) ** 2)
    assert found.read_bytes(10_000) - found.step_bytes == routed
    assert found.decode_bytes(2, 10) == found.read_bytes(2) + 20 * found.kv_token_bytes
    [of_one], [of_two] = found.experts, half.experts
    assert (of_one.layers, of_one.count, of_one.top_k, of_one.held, of_one.weight_bytes) == (2, 8, 3, 64, routed)
    assert (of_two.intermediate_size, of_two.held, of_two.weight_bytes) == (64, 32, routed // 2)
    assert found.parameters - found.active_parameters == 512 * hidden + routed // 2 * 5 // 8


def test_what_a_token_multiplies(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Latent attention makes queries and values in latent space, and keeps latents on every rank."""
    directory = make_checkpoint("deepseek_v3", dtype="bfloat16")
    found, half = (planned(directory, tensor_parallel_size=ranks) for ranks in (1, 2))
    layers, heads, latent, rope = 3, 4, 32, 8
    assert found.kv_token_bytes == half.kv_token_bytes == layers * (latent + rope) * 2
    assert found.attention[0].pair_flops == layers * heads * (2 * latent + rope) * 2
    assert half.attention[0].pair_flops == found.attention[0].pair_flops // 2
    hidden, q_rank, nope, value = 64, 24, 16, 16
    attention = hidden * (q_rank + latent + rope) + heads * (q_rank * (nope + rope) + latent * (nope + value))
    attention += heads * value * hidden
    mlps = 3 * hidden * 96 + 2 * (3 * hidden * 32 * (3 + 1) + hidden * 8)
    assert found.product_flops == 2 * (layers * attention + mlps)
    # Beside the products: norms, and what corrects the choice of experts.
    vectors = layers * (2 * hidden + q_rank + latent) + hidden + 2 * 8
    assert found.active_parameters == layers * attention + mlps + 512 * hidden + vectors


def test_the_page_of_a_sparse_model(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sophserve.measure.footprint_process import footprint

    monkeypatch.setattr("sophserve.measure.plan.measure", footprint)
    directory = make_checkpoint("qwen2_moe", dtype="bfloat16")
    command = [str(directory), "--device-memory", "64MiB", "--tensor-parallel-size", "2", "--dtype", "bfloat16"]
    assert plan(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "parameters       0.2M, of which a token is multiplied with 0.1M" in lines
    assert "experts          8 in 2 layers, 3 for a token; 16 of the 32 inner features of each are on a device" in lines
    weights = loaded(directory, 2)
    assert any(line.startswith("weights ") and line.endswith(f"a device, {weights} bytes") for line in lines)
    assert plan([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["weight_bytes"], answer["experts"][0]["held"]) == (weights, 16)


def test_ranks_that_would_cut_groups(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    write, config = CASES["fp8 blocks"]
    shape = {**SHAPES["qwen3_moe"], "moe_intermediate_size": 384, "num_attention_heads": 8, "num_key_value_heads": 8}
    quantize(make_checkpoint("qwen3_moe", **shape, dtype="bfloat16"), tmp_path, write, config, LINEAR.fullmatch)
    directory = alone(tmp_path / "quantized", tmp_path / "config")
    with pytest.raises(ConfigError, match=r"experts of 384 columns.*groups of 128.* can be 1 for this model"):
        planned(directory, tensor_parallel_size=2)
    memory = planned(directory).weight_bytes - 1
    assert planned(directory, memory).fewest_devices == {}
