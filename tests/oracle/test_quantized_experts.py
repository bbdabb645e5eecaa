"""Sparse and latent models of every on-disk format against transformers with the dequantized weights.

The files are written from the formats' definitions, as those of test_quantization.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophserve.errors import CheckpointError, ConfigError
from tests.oracle.test_quantization import (
    FORMATS,
    PROMPT,
    awq,
    compressed,
    gptq,
    logprobs_of_ranks,
    quantize,
    transformers_logprobs,
)

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 2,
    "initializer_range": 0.04,
}
SHAPES = {
    "qwen2_moe": {**SHAPE, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {**SHAPE, "head_dim": 32},
    "deepseek_v3": {**SHAPE, "q_lora_rank": 64, "kv_lora_rank": 64, "v_head_dim": 32},
}
LINEAR = re.compile(r".*_proj(_with_mqa)?\.weight")
EXPERT = re.compile(r".*\.experts\.(?P<number>\d+)\.(?P<part>\w+)_proj")

CASES = {
    "gptq": gptq(),
    "gptq channels": gptq(group_size=-1),
    "gptq asymmetric": gptq(symmetric=False, group_size=32),
    "gptq act order": gptq(act_order=True),
    "gptq act order, asymmetric, 8 bits": gptq(act_order=True, symmetric=False, bits=8, group_size=32),
    "awq": awq(),
    "auto-round asymmetric": FORMATS["auto-round asymmetric"],
    "compressed int4 asymmetric": compressed(symmetric=False),
    "compressed int4 act order": compressed(act_order=True, group_size=32),
    "compressed int8 asymmetric": compressed(bits=8, symmetric=False),
    "compressed int8 act order, asymmetric": compressed(bits=8, act_order=True, symmetric=False),
    "compressed float8 channels": FORMATS["compressed float8 channels"],
    "compressed float8 blocks": FORMATS["compressed float8 blocks"],
    "fp8 blocks": FORMATS["fp8 blocks"],
    "fp8 channels": FORMATS["fp8 channels"],
    "fp8 tensor": FORMATS["fp8 tensor"],
}
QUICK = ("gptq act order", "awq", "compressed int8 asymmetric", "fp8 blocks")
OF_SPARSE = [(kind, case) for kind in ("qwen2_moe", "deepseek_v3") for case in CASES]
"""Kinds of models, each with its experts in every format."""


def check(open_model, target, ranks=(1, 2), dtype=torch.float32):
    expected = transformers_logprobs(target / "exact", PROMPT)
    for each in ranks:
        logprobs = logprobs_of_ranks(open_model, target / "quantized", dtype, each)
        worst = (logprobs - expected).abs().amax(-1)
        if dtype == torch.float32:
            assert worst.max() < 2e-3, f"{each} ranks"
        else:
            # Of few tokens a rounded value chooses another expert.
            assert worst.median() < 5e-2, f"{each} ranks"


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, marks=[] if kind == "qwen2_moe" or case in QUICK else pytest.mark.slow)
        for kind, case in OF_SPARSE
    ],
)
def test_quantized_experts_equal_their_dequantized_weights(case, kind, make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint(kind, **SHAPES[kind]), tmp_path, *CASES[case], LINEAR.fullmatch)
    check(open_model, tmp_path)


@pytest.mark.parametrize("case", ["gptq act order", "fp8 blocks"])
def test_in_bfloat16(case, make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"]), tmp_path, *CASES[case], LINEAR.fullmatch)
    check(open_model, tmp_path, dtype=torch.bfloat16)


ODD = {"hidden_size": 200, "intermediate_size": 328, "shared_expert_intermediate_size": 136}
ODD_LATENT = {"hidden_size": 200, "intermediate_size": 328, "kv_lora_rank": 136, "q_lora_rank": 72}


@pytest.mark.parametrize("case", ["fp8 blocks", "compressed float8 blocks"])
@pytest.mark.parametrize(("kind", "odd"), [("qwen2_moe", ODD), ("deepseek_v3", ODD_LATENT)])
def test_blocks_that_sizes_do_not_fill(case, kind, odd, make_checkpoint, open_model, tmp_path):
    """As those of DeepSeek V3's kv_a_proj_with_mqa, which has 576 outputs."""
    quantize(make_checkpoint(kind, **{**SHAPES[kind], **odd}), tmp_path, *CASES[case], LINEAR.fullmatch)
    check(open_model, tmp_path)
    # Experts of one block and a part, which one rank holds whole; and of part of a block, which any number may share.
    for inner, ranks in ((136, 1), (96, 2)):
        shape = {**SHAPES[kind], **odd, "moe_intermediate_size": inner}
        quantize(make_checkpoint(kind, **shape), tmp_path / str(inner), *CASES[case], LINEAR.fullmatch)
        check(open_model, tmp_path / str(inner), [ranks])


def by_expert(change):
    """Experts of a layer that are written in ways of their own: `change` chooses one by the number and the part."""

    def write(name, weight):
        match = EXPERT.fullmatch(name)
        chosen = change(int(match["number"]), match["part"]) if match else None
        return (chosen or gptq(act_order=True)[0])(name, weight)

    return write


MIXTURES = {
    "other orders of gate and up": lambda number, part: gptq(act_order=part != "up")[0],
    "some in order": lambda number, part: gptq(act_order=number % 2 == 0)[0],
    "other groups": lambda number, part: gptq(group_size=(32, 64, 128, -1)[number % 4], act_order=number % 3 == 0)[0],
    "some of 8 bits": lambda number, part: gptq(bits=(4, 8)[number == 3], act_order=True)[0],
    "one plain": lambda number, part: PLAIN if number == 5 else None,
}


def PLAIN(name, weight):
    return {f"{name}.weight": weight}, weight


@pytest.mark.parametrize("case", MIXTURES)
def test_experts_of_a_layer_quantized_in_other_ways(case, make_checkpoint, open_model, tmp_path):
    """GPTQ's `dynamic` may give each a group size, an order and a number of bits of its own, or leave it out."""
    config = gptq(act_order=True)[1]
    source = make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"])
    quantize(source, tmp_path, by_expert(MIXTURES[case]), config, LINEAR.fullmatch)
    check(open_model, tmp_path)


@pytest.mark.parametrize("case", ["awq", "compressed int8 asymmetric", "fp8 tensor"])
def test_a_router_and_a_gate_that_are_quantized(case, make_checkpoint, open_model, tmp_path):
    """GPTQModel's AWQ of Qwen3-MoE has a quantized router, and a recipe that ignores too little also this gate."""
    write, config = CASES[case]
    gates = "gate" if case == "awq" else "gate|shared_expert_gate"  # AWQ needs 8 outputs
    source = make_checkpoint("qwen2_moe", **SHAPES["qwen2_moe"])
    quantize(source, tmp_path, write, config, re.compile(rf".*(_proj|\.{gates})\.weight").fullmatch)
    check(open_model, tmp_path)


CUTS = {
    # What is quantized how, the ranks that would cut it, and those that do not.
    "gptq groups": (gptq(group_size=128), 768, 4, "groups of 128, cannot be split between 4 ranks.* can be 1, 2 for"),
    "awq groups": (awq(64), 192, 2, "experts of 192 columns, which are quantized in groups of 64, .* can be 1 for"),
    "compressed groups": (compressed(64), 384, 4, "groups of 64, cannot .* can be 1, 2 for this model"),
    "fp8 blocks": (FORMATS["fp8 blocks"], 768, 4, "groups of 128, cannot .* can be 1, 2 for this model"),
    "fp8 blocks not filled": (FORMATS["fp8 blocks"], 320, 2, "groups of 128, cannot .* can be 1 for this model"),
}


@pytest.mark.parametrize("case", CUTS)
def test_ranks_that_would_cut_groups_of_experts_are_refused(case, make_checkpoint, open_model, tmp_path):
    (write, config), inner, ranks, words = CUTS[case]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16}
    shape = {**SHAPES["qwen3_moe"], **heads, "moe_intermediate_size": inner}
    quantize(make_checkpoint("qwen3_moe", **shape), tmp_path, write, config, LINEAR.fullmatch)
    with pytest.raises(ConfigError, match=words):
        logprobs_of_ranks(open_model, tmp_path / "quantized", torch.float32, ranks)


UNCUT = {
    # A rank's part lies within a group.
    "gptq groups of 128": (gptq(group_size=128), 256),
    "fp8 blocks": (FORMATS["fp8 blocks"], 256),
    "gptq channels": (gptq(group_size=-1), 256),
    "gptq act order": (gptq(group_size=128, act_order=True), 256),
    "compressed act order": (compressed(64, act_order=True), 96),
    "fp8 channels": (FORMATS["fp8 channels"], 96),
    "fp8 tensor": (FORMATS["fp8 tensor"], 96),
}


@pytest.mark.parametrize("case", UNCUT)
def test_experts_of_whom_no_part_straddles_groups(case, make_checkpoint, open_model, tmp_path):
    (write, config), inner = UNCUT[case]
    shape = {**SHAPES["qwen3_moe"], "moe_intermediate_size": inner}
    quantize(make_checkpoint("qwen3_moe", **shape), tmp_path, write, config, LINEAR.fullmatch)
    check(open_model, tmp_path, [4])


def test_a_stack_of_float8_is_refused(make_checkpoint, open_model, tmp_path):
    """transformers holds FP8 experts in one tensor with one of scales, and by default does not write them so."""
    source = make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"])
    quantize(source, tmp_path, *CASES["fp8 blocks"], LINEAR.fullmatch)
    file = tmp_path / "quantized" / "model.safetensors"
    tensors = {name: each for name, each in load_file(file).items() if ".layers.0.mlp.experts." not in name}
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[stack] = torch.zeros(8, 512, 128).to(torch.float8_e4m3fn)
    save_file(tensors | {f"{stack}_scale_inv": torch.ones(8, 4, 1)}, file)
    with pytest.raises(
        CheckpointError, match=f"{stack} in .* is a stack of experts stored as F8_E4M3; .* of each expert"
    ):
        open_model(tmp_path / "quantized")


@pytest.mark.parametrize(("size", "act_order"), [(16, False), (40, False), (40, True)])
def test_groups_of_sizes_that_kernels_do_not_take(size, act_order, make_checkpoint, open_model, tmp_path):
    shape = {**SHAPES["qwen3_moe"], "hidden_size": 320, "moe_intermediate_size": 160}
    form = gptq(group_size=size, act_order=act_order)
    quantize(make_checkpoint("qwen3_moe", **shape), tmp_path, *form, LINEAR.fullmatch)
    check(open_model, tmp_path)
