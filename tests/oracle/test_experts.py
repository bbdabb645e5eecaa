"""What sparse models have beyond others: how experts are chosen, and how they stand on disk."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from device.cmodel.weights import PanelWeight
from device.interface import StepInputs
from sophserve.errors import CheckpointError
from sophserve.model.experts import Experts, Router

EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"
ROUTER = "model.layers.{}.mlp.gate.weight"
IDS = torch.randint(3, 512, (70,), generator=torch.Generator().manual_seed(5)).tolist()


@torch.inference_mode()
def transformers_logprobs(directory, **options):
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **options)
    return model(torch.tensor([IDS])).logits[0].float().log_softmax(-1)


def test_weights_of_experts_are_not_normalised_where_the_file_does_not_say_so(changed, open_model):
    """transformers' default of norm_topk_prob is false, also for Qwen3-MoE, whose files say true."""
    for kind in ("qwen2_moe", "qwen3_moe"):
        directory = changed(kind, config={"norm_topk_prob": None}, norm_topk_prob=True)
        ours = open_model(directory).logprobs(IDS, 25)
        assert (ours - transformers_logprobs(directory)).abs().max() < 2e-4


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe"])
def test_stacked_experts_give_the_same_bits(kind, make_checkpoint, open_model, tmp_path):
    """transformers 5 holds the experts of a layer in one tensor, and writes them so with save_original_format=False."""
    directory = make_checkpoint(kind)
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path, save_original_format=False)
    names = load_file(tmp_path / "model.safetensors")
    assert names["model.layers.0.mlp.experts.gate_up_proj"].shape == (8, 64, 64)
    assert EXPERT.format(0, 0, "gate") not in names
    assert torch.equal(open_model(tmp_path).logprobs(IDS, 25), open_model(directory).logprobs(IDS, 25))


def test_stacks_of_one_projection_are_read_as_well(changed, open_model):
    directory = changed("qwen3_moe")
    stored = load_file(directory / "model.safetensors")
    stacks = {}
    for layer in range(2):
        for part in ("gate", "up", "down"):
            each = [stored.pop(EXPERT.format(layer, expert, part)) for expert in range(8)]
            stacks[f"model.layers.{layer}.mlp.experts.{part}_proj.weight"] = torch.stack(each)
    expected = open_model(directory).logprobs(IDS, 25)
    save_file(stored | stacks, directory / "model.safetensors")
    assert torch.equal(open_model(directory).logprobs(IDS, 25), expected)


def test_a_stack_that_is_the_other_way_round_is_refused(changed, open_model):
    turned = {"model.layers.0.mlp.experts.down_proj": torch.zeros(8, 32, 64)}
    turned |= {EXPERT.format(0, expert, "down"): None for expert in range(8)}
    with pytest.raises(CheckpointError, match=r"experts\.down_proj in .* has shape \[32, 64\], but .* \[64, 32\]"):
        open_model(changed("qwen3_moe", turned))


@pytest.mark.parametrize("name", ["gate_up_proj", "gate_up_proj.weight", "up_proj"])
def test_experts_that_are_stacked_and_alone_are_refused(name, changed, open_model):
    """Nothing tells which are right, even where they are the same."""
    rows = 32 if name == "up_proj" else 64
    stack = {f"model.layers.1.mlp.experts.{name}": torch.zeros(8, rows, 64)}
    words = rf"has .*\.experts\.0\.(gate|up)_proj\.weight and .*\.experts\.{name}, which hold the same experts; remove"
    with pytest.raises(CheckpointError, match=words):
        open_model(changed("qwen2_moe", stack))


@pytest.mark.parametrize("shape", [[], [64], [512, 64], [1, 8, 64, 64], [8, 63, 64], [8, 0, 64], [1 << 40, 2, 0]])
def test_stacks_of_odd_shapes_are_refused(shape, changed, open_model):
    stack = {"model.layers.1.mlp.experts.gate_up_proj": torch.zeros(shape)}
    stack |= {EXPERT.format(1, expert, part): None for expert in range(8) for part in ("gate", "up")}
    words = (
        rf"experts\.gate_up_proj in .* has shape {re.escape(str(shape))}, but a stack of experts has a matrix for each"
    )
    with pytest.raises(CheckpointError, match=words):
        open_model(changed("qwen2_moe", stack))


def test_the_numbers_of_experts_change_no_bit(changed, open_model):
    """Experts are added in the order in which the router ranks them, not in that of their numbers."""
    shuffle = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    plain = changed("qwen2_moe", num_experts_per_tok=4)
    stored = load_file(plain / "model.safetensors")
    moved = {ROUTER.format(layer): stored[ROUTER.format(layer)][shuffle] for layer in range(2)}
    moved |= {
        EXPERT.format(layer, place, part): stored[EXPERT.format(layer, expert, part)]
        for layer in range(2)
        for place, expert in enumerate(shuffle.tolist())
        for part in ("gate", "up", "down")
    }
    ours = open_model(plain).model.layers[1].mlp
    theirs = open_model(changed("qwen2_moe", moved, num_experts_per_tok=4)).model.layers[1].mlp
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    ids, weights = ours.router(x)
    other_ids, other_weights = theirs.router(x)
    assert torch.equal(shuffle[other_ids.long()], ids.long())
    assert (other_weights - weights).abs().max() < 1e-6
    ops = ours._context.device.ops
    expected = ops.fused_experts(x, ours.experts.weight, ids, weights, "silu").clone()
    assert torch.equal(ops.fused_experts(x, theirs.experts.weight, other_ids, weights, "silu"), expected)


@pytest.mark.parametrize(
    ("stored", "run", "packed"),
    [
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("float32", torch.bfloat16, torch.float32),
        ("bfloat16", torch.float16, torch.float32),
        ("bfloat16", torch.float32, torch.float32),
    ],
)
def test_no_value_of_a_router_is_rounded(stored, run, packed, make_checkpoint, open_model):
    directory = make_checkpoint("qwen3_moe", dtype=stored)
    router = open_model(directory, run).model.layers[1].mlp.router
    assert isinstance(router, Router) and isinstance(router.weight, PanelWeight)
    assert router.weight.dtype == packed


def test_experts_count_as_many_operations_as_a_token_meets(make_checkpoint, open_model):
    model = open_model(make_checkpoint("qwen2_moe")).model
    [experts, _] = (module for module in model.modules() if isinstance(module, Experts))
    assert experts.token_flops == 2 * 3 * (3 * 64 * 32)
    assert experts.weight.nbytes == 4 * 8 * (3 * 64 * 32)


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        (
            {EXPERT.format(1, 5, part): None for part in ("gate", "up", "down")},
            {},
            r"it lacks model\.layers\.1\.mlp\.experts\.5\.gate_proj\.weight, .*\.5\.up_proj\.weight, .*\.5\.down_proj",
        ),
        (
            {ROUTER.format(0): torch.zeros(7, 64)},
            {},
            r"model\.layers\.0\.mlp\.gate\.weight in .* has shape \[7, 64\], but config\.json asks for \[8, 64\]",
        ),
        ({}, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are only 8 experts"),
        ({}, {"num_experts": None, "num_local_experts": None}, "has no num_experts"),
        ({}, {"num_experts": 8, "num_local_experts": 4}, "num_experts 8 and num_local_experts 4"),
        ({}, {"num_experts": 7}, r"it has model\.layers\.0\.mlp\.experts\.7\.down_proj\.weight"),
        ({}, {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({}, {"moe_intermediate_size": None}, "has no moe_intermediate_size, which Qwen2MoeForCausalLM needs"),
        ({}, {"n_group": 2}, "sets n_group to 2, which sophserve's Qwen2MoeForCausalLM does not implement"),
    ],
)
def test_what_does_not_fit_is_named(tensors, config, words, changed, open_model):
    with pytest.raises(CheckpointError, match=words):
        open_model(changed("qwen2_moe", tensors, config))


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_steps_are_recorded(kind, dtype, make_checkpoint, open_model):
    """As they are of models that compute with operators of the device alone; the others decode at a fraction of the
    speed. A recording has the bits of the operators one by one, for all of its rows or some."""
    model = open_model(make_checkpoint(kind), dtype).model
    device, rows = model.context.device, torch.arange(4, dtype=torch.int32)
    zeros = torch.zeros_like(rows)
    inputs = StepInputs(zeros + 1, zeros, rows[:, None], rows * 8, 1, ids=rows * 100 + 5, positions=zeros)

    def step():
        return model.logits(model(device.prepare(inputs, model.ropes)))

    with torch.inference_mode():
        expected = step().clone()
        replay = device.capture(step, 4)
        assert replay is not None
        for count in (4, 1):
            assert torch.equal(replay(count), expected[:count])
