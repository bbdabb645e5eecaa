"""What the quantization configs of sparse and latent models say of layers, where no file tells."""

from __future__ import annotations

import pytest
import torch

from model_plugins.quantization.auto_round import AutoRound
from model_plugins.quantization.awq import AWQ
from model_plugins.quantization.compressed_tensors import CompressedTensors
from model_plugins.quantization.fp8 import FP8, ModelOpt
from model_plugins.quantization.gptq import GPTQ
from sophserve.errors import CheckpointError
from sophserve.model.quantization import names_layer

LAYER = "model.layers.1."
ATTENTION = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
MLPS = ["experts.0", "experts.17", "shared_expert", "shared_experts"]
PARTS = [f"{LAYER}mlp.{mlp}.{part}_proj" for mlp in MLPS for part in ("gate", "up", "down")]
PROJECTIONS = [f"{LAYER}self_attn.{part}" for part in ATTENTION] + PARTS
GATES = [f"{LAYER}mlp.gate", f"{LAYER}mlp.shared_expert_gate"]
SHAPE = (576, 256)  # rows that fill no blocks of 128, as kv_a_proj_with_mqa has them

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
IN_BLOCK = [
    ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"],
    ["mlp.shared_expert.up_proj", "mlp.shared_expert.gate_proj"],
    ["mlp.experts.0.up_proj", "mlp.experts.0.gate_proj"],
]
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}


def compressed(ignore, **groups):
    found = {name: {"targets": targets, "weights": weights} for name, (targets, weights) in groups.items()}
    return CompressedTensors({"format": "pack-quantized", "config_groups": found, "ignore": ignore})


KIMI = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
AUTO_ROUND = {
    "packing_format": "auto_round:auto_awq",
    "bits": 4,
    "group_size": 64,
    "sym": False,
    "extra_config": {
        ".*model\\.layers\\.1\\.mlp\\.gate.*": {"bits": 16, "data_type": "float", "sym": True},
        "model.layers.1.mlp.shared_expert_gate": {"bits": 16, "data_type": "fp"},
        "model.layers.1.self_attn.kv_b_proj": {"bits": 16},
    },
}
CASES = {
    # Whole models: all projections, and no gate.
    "DeepSeek V3": (FP8(BLOCKS), PROJECTIONS),
    "Qwen's FP8": (FP8({**BLOCKS, "modules_to_not_convert": ["lm_head", *GATES]}), PROJECTIONS),
    "gptq": (GPTQ({"bits": 4, "group_size": 64}), PROJECTIONS),
    "gptq with a head": (GPTQ({"bits": 4, "group_size": 64, "lm_head": True}), [*PROJECTIONS, "lm_head"]),
    "awq, gate": (AWQ({"bits": 4, "group_size": 64, "modules_to_not_convert": ["gate"]}), PROJECTIONS),
    "ModelOpt": (ModelOpt({"quant_algo": "FP8", "exclude_modules": ["lm_head", "*mlp.gate"]}), PROJECTIONS),
    "llm-compressor": (
        compressed(["lm_head", "re:.*mlp.gate$", "re:.*mlp.shared_expert_gate$"], group_0=(["Linear"], INT4)),
        PROJECTIONS,
    ),
    # Parts of them.
    "AutoGPTQ": (
        GPTQ({"bits": 4, "group_size": 64, "modules_in_block_to_quantize": IN_BLOCK}),
        [f"{LAYER}{layer}" for layer in ("self_attn.q_proj", *IN_BLOCK[2][::-1], *IN_BLOCK[1][::-1])],
    ),
    "AutoGPTQ in one list": (
        GPTQ({"bits": 4, "modules_in_block_to_quantize": ["self_attn.q_proj"]}), [f"{LAYER}self_attn.q_proj"]
    ),
    "GPTQModel": (
        GPTQ({"bits": 4, "dynamic": {r"-:.*\.mlp\.shared_expert": {}, r"-:.*kv_b_proj$": {}}}),
        [each for each in PROJECTIONS if "shared_expert" not in each and "kv_b" not in each],
    ),
    "QuantTrio": (
        AWQ({"bits": 4, "modules_to_not_convert": ["model.layers.0.", "self_attn", "shared_expert"]}),
        [each for each in PARTS if ".shared_expert." not in each],
    ),
    "AutoAWQ": (
        AWQ({"bits": 4, "modules_to_not_convert": ["self_attn.kv_a_proj_with_mqa"]}),
        [each for each in PROJECTIONS if "kv_a" not in each],
    ),
    "ModelOpt's wildcards": (
        ModelOpt({"quant_algo": "FP8", "exclude_modules": ["model.layers.1.self_attn*", "*shared_experts*"]}),
        [each for each in PARTS if "shared_experts" not in each],
    ),
    "auto-round": (AutoRound(AUTO_ROUND), [each for each in PROJECTIONS if "kv_b" not in each]),
    # It has no gate of shared experts, which would be a linear layer like any other.
    "Kimi K2": (
        compressed(KIMI, group_0=(["Linear"], INT4)),
        [*(each for each in PARTS if "shared_experts" not in each), GATES[1]],
    ),
    "targets": (
        compressed([], group_0=(["re:.*self_attn.*"], FLOAT8), group_1=(["re:.*experts\\.\\d+.*"], INT4)),
        [each for each in PROJECTIONS if "shared" not in each],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_layers_are_quantized(case):
    scheme, quantized = CASES[case]
    names = [*PROJECTIONS, *GATES, "lm_head"]
    assert [name for name in names if scheme.expected(name, SHAPE, torch.bfloat16)] == quantized


def test_scales_of_blocks_that_sizes_do_not_fill():
    expected = FP8(BLOCKS).expected(f"{LAYER}self_attn.kv_a_proj_with_mqa", (576, 200), torch.bfloat16)
    assert {name: tuple(each.shape) for name, each in expected.items()} == {
        "weight": (576, 200),
        "weight_scale_inv": (5, 2),
    }


def test_dynamic_and_targets_change_bits_and_groups():
    dynamic = {r"+:.*\.experts\.\d+\.down_proj": {"bits": 8, "group_size": 32, "desc_act": True}}
    scheme = GPTQ({"bits": 4, "group_size": 64, "dynamic": dynamic})
    up, down = (scheme.expected(f"{LAYER}mlp.experts.3.{part}_proj", SHAPE, torch.float16) for part in ("up", "down"))
    assert [tuple(each["qweight"].shape) for each in (up, down)] == [(32, 576), (64, 576)]
    assert [len(each["scales"]) for each in (up, down)] == [4, 8]
    assert [bool((each["g_idx"].diff() >= 0).all()) for each in (up, down)] == [True, False]
    found = CASES["targets"][0].expected(f"{LAYER}mlp.experts.3.up_proj", SHAPE, torch.bfloat16)
    assert tuple(found["weight_packed"].shape) == (576, 32) and tuple(found["weight_scale"].shape) == (576, 8)
    assert "weight_packed" not in CASES["targets"][0].expected(f"{LAYER}self_attn.o_proj", SHAPE, torch.bfloat16)


def test_layers_of_auto_round_that_are_quantized_otherwise():
    """A layer of 16 bits is plain whatever it says of sym; others must be of one kind."""
    extra = {"model.layers.1.self_attn.o_proj": {"bits": 4, "sym": True}}
    with pytest.raises(CheckpointError, match=r"another sym for model.layers.1.self_attn.o_proj"):
        AutoRound({**AUTO_ROUND, "extra_config": extra})


@pytest.mark.parametrize(
    ("pattern", "layer", "named"),
    [
        ("gate", "model.layers.0.mlp.gate", True),
        ("gate", "model.layers.0.mlp.gate_proj", False),
        ("mlp.gate", "model.layers.0.mlp.gate_proj", False),
        ("model.layers.1", "model.layers.10.mlp.down_proj", False),
        ("model.layers.1.", "model.layers.1.mlp.down_proj", True),
        ("*.mlp.gate*", "model.layers.0.mlp.gate_proj", True),
        ("model.layers.*.mlp.gate", "model.layers.12.mlp.gate", True),
        ("shared_expert", "model.layers.0.mlp.shared_experts.up_proj", False),
    ],
)
def test_names_of_plain_layers(pattern, layer, named):
    assert names_layer(pattern, layer) is named
