"""Products on int8 activations: the reference's bits, on every instruction set, whatever is beside a row."""

import random
from dataclasses import replace

import pytest
import torch

from device.interface import DenseWeight, ExpertsWeight, IntWeight, LatentUpWeight
from device.reference import ReferenceOps, dequantize, reference_weight

REFERENCE = ReferenceOps()
SHAPES = 40
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def same_bits(result, expected, case=""):
    assert result.dtype == expected.dtype and result.shape == expected.shape, case
    assert torch.equal(result.isnan(), expected.isnan()), case
    assert torch.equal(result.nan_to_num(), expected.nan_to_num()), case


def size(generator, most):
    """Often small, and now and then large."""
    return max(1, int(most ** generator.random()))


def random_weight(generator, outputs, inputs, activations="blocks", order=True):
    """Codes, zero points, groups and an order of channels at random; now and then all of them at an edge."""
    bits = generator.choice([4, 4, 8])
    inputs += inputs % 2
    group = generator.choice([32, 64, 96, 128, 256, inputs])
    groups, middle, last = -(-inputs // group), 1 << (bits - 1), (1 << bits) - 1
    codes = torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8)
    if generator.random() < 0.2:
        codes.fill_(generator.choice([0, 255]))
    zeros = torch.randint(1 << bits, (outputs, groups), dtype=torch.uint8)
    if generator.random() < 0.7:
        zeros.fill_(generator.choice([middle, middle, 0, last]))
    scales = (torch.rand(outputs, groups) / middle).to(generator.choice(DTYPES))
    weight = IntWeight(codes, scales, zeros, group, bits, activations=activations)
    if order and generator.random() < 0.3:
        channels = torch.randperm(inputs, dtype=torch.int32)
        gaps = generator.randint(0, min(5, inputs - 1))
        weight = replace(weight, order=torch.where(channels >= inputs - gaps, -1, channels))
    return weight


def random_rows(generator, rows, channels, dtype):
    """With outliers, zeros and, now and then, a value that is not finite."""
    x = torch.randn(rows, channels) * generator.choice([1e-30, 0.1, 1, 100])
    x[:, torch.rand(channels) < 0.02] *= 200
    x[torch.rand(rows) < 0.1] = 0
    if generator.random() < 0.2:
        start = generator.randrange(channels)
        x[:, start : start + 40] = 0
    if generator.random() < 0.1:
        x[generator.randrange(rows), generator.randrange(channels)] = generator.choice([float("nan"), float("inf")])
    return x.to(dtype)


def check_linear(cmodel, seed):
    generator = random.Random(seed)
    torch.manual_seed(seed)
    rows, outputs, inputs = size(generator, 70), size(generator, 200), size(generator, 1500)
    weight = random_weight(generator, outputs, inputs, generator.choice(["blocks", "blocks", "rows"]))
    expected_weight, packed, dtype = reference_weight(weight), cmodel.pack(weight), generator.choice(DTYPES)
    x = random_rows(generator, rows, packed.in_features, dtype)
    bias = torch.randn(outputs).to(dtype) if generator.random() < 0.5 else None
    case = (seed, rows, outputs, inputs, dtype)
    whole = cmodel.ops.linear(x, packed, bias)
    same_bits(whole, REFERENCE.linear(x, expected_weight, bias), case)
    alone = generator.randrange(rows)
    same_bits(cmodel.ops.linear(x[alone : alone + 1], packed, bias), whole[alone : alone + 1], case)
    same_bits(torch.cat([cmodel.ops.linear(part, packed, bias) for part in x.split(5)]), whole, case)


def test_linear(cmodel):
    for seed in range(SHAPES):
        check_linear(cmodel, seed)


@pytest.mark.slow
def test_linear_over_many_shapes(cmodel):
    for seed in range(SHAPES, 540):
        check_linear(cmodel, seed)


def mlp_weights(generator, hidden, intermediate):
    gate_up = random_weight(generator, 2 * intermediate, hidden, order=False)
    return gate_up, random_weight(generator, hidden, intermediate, order=False)


@pytest.mark.parametrize("intermediate", [64, 90, 352])
def test_gated_mlp(cmodel, dtype, intermediate):
    # A gate of a thousand and more is its own silu, so that exp has no part in the bits.
    torch.manual_seed(0)
    bias = torch.zeros(2 * intermediate, dtype=dtype)
    bias[:intermediate] = 4000
    for seed, rows in enumerate((1, 3, 7, 40)):
        gate_up, down = mlp_weights(random.Random(seed), 130, intermediate)
        x = torch.randn(rows, 130).to(dtype) / 8
        expected = REFERENCE.gated_mlp(x, reference_weight(gate_up), reference_weight(down), "silu", bias)
        same_bits(cmodel.ops.gated_mlp(x, cmodel.pack(gate_up), cmodel.pack(down), "silu", bias), expected, seed)


def test_experts_are_gated_mlps(cmodel, dtype):
    torch.manual_seed(0)
    hidden, intermediate = 96, 64
    pairs = [mlp_weights(random.Random(0), hidden, intermediate) for _ in range(6)]
    experts = cmodel.pack(ExpertsWeight(*map(list, zip(*pairs, strict=True))), "experts")
    for rows in (1, 9, 40):
        x = torch.randn(rows, hidden).to(dtype)
        ids = torch.rand(rows, len(pairs)).topk(2).indices.int()
        result = cmodel.ops.fused_experts(x, experts, ids, torch.ones(rows, 2), "silu")
        each = [cmodel.ops.gated_mlp(x, *map(cmodel.pack, pair), "silu").float() for pair in pairs]
        chosen = torch.stack(each)[ids.long().T, torch.arange(rows)]
        same_bits(result, (chosen[0] + chosen[1]).to(dtype), rows)


def test_a_replay_has_the_same_bits(cmodel):
    torch.manual_seed(0)
    gate_up, down = map(cmodel.pack, mlp_weights(random.Random(2), 130, 64))
    x = torch.randn(20, 130).bfloat16()
    replay = cmodel.capture(lambda: cmodel.ops.gated_mlp(x, gate_up, down, "silu"), 20)
    for rows in (20, 1, 7):
        x.copy_(torch.randn(20, 130))
        same_bits(replay(rows), cmodel.ops.gated_mlp(x[:rows], gate_up, down, "silu"))


def test_ranks_add_what_the_reference_adds(cmodel):
    # A share that begins with a group rounds the same blocks as the whole.
    torch.manual_seed(0)
    weight = replace(random_weight(random.Random(3), 40, 256, order=False), group_size=64)
    values, x = weight.values, torch.randn(9, 256)
    groups = torch.rand(40, 4), torch.randint(16, (40, 4), dtype=torch.uint8)
    shares = []
    for rank in range(2):
        columns, inputs = values.shape[1] // 2, slice(128 * rank, 128 * rank + 128)
        mine = [each[:, 2 * rank : 2 * rank + 2].contiguous() for each in groups]
        share = replace(
            weight, values=values[:, columns * rank :][:, :columns].contiguous(), scales=mine[0], zeros=mine[1]
        )
        shares.append(cmodel.ops.linear(x[:, inputs], cmodel.pack(share)))
        same_bits(shares[-1], REFERENCE.linear(x[:, inputs], reference_weight(share)))
    whole = REFERENCE.linear(x, reference_weight(replace(weight, scales=groups[0], zeros=groups[1])))
    assert (shares[0] + shares[1] - whole).abs().max() < 1e-4 * whole.abs().max()


def test_threads_change_nothing(cmodel, monkeypatch):
    generator = random.Random(1)
    torch.manual_seed(1)
    weight = random_weight(generator, 700, 512, order=False)
    x = torch.randn(33, 512).bfloat16()
    packed = cmodel.pack(weight)
    two = cmodel.ops.linear(x, packed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    same_bits(type(cmodel)().ops.linear(x, packed), two)


def test_rounding_is_a_small_error(cmodel):
    torch.manual_seed(0)
    for bits, activations in ((4, "blocks"), (8, "blocks"), (8, "rows")):
        codes = torch.randint(256, (64, 1024 * bits // 8), dtype=torch.uint8)
        zeros = torch.full((64, 8), 1 << (bits - 1), dtype=torch.uint8)
        weight = IntWeight(codes, torch.rand(64, 8), zeros, 128, bits, activations=activations)
        x = torch.randn(16, 1024)
        exact = x @ dequantize(weight).T
        error = cmodel.ops.linear(x, cmodel.pack(weight)) - exact
        assert 1e-4 < error.norm() / exact.norm() < (0.007 if activations == "blocks" else 0.012)


def test_what_cannot_take_int8_is_refused(cmodel):
    zeros, codes = torch.full((4, 5), 8, dtype=torch.uint8), torch.zeros(4, 50, dtype=torch.uint8)
    weight = IntWeight(codes, torch.ones(4, 5), zeros, 20, activations="blocks")
    for pack in (cmodel.pack, reference_weight):
        with pytest.raises(ValueError, match="groups of 20 inputs cannot be multiplied by int8"):
            pack(weight)
        rows = replace(weight, values=torch.zeros(4, 64, dtype=torch.uint8), group_size=32)
        with pytest.raises(ValueError, match="latents takes activations as they are"):
            pack(LatentUpWeight(rows, 1, 2, torch.float32))
        alike = [replace(rows, activations=activations) for activations in ("blocks", "rows")]
        if pack == cmodel.pack:
            with pytest.raises(ValueError, match="must be alike"):
                pack(ExpertsWeight(alike, alike))
    dense = DenseWeight(torch.ones(4, 4))
    assert cmodel.pack(dense).nbytes
