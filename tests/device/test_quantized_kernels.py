"""The int4, int8 and float8 kernels, on every instruction set, against the reference."""

from dataclasses import replace

import pytest
import torch

from device.interface import Float8Weight, IntWeight
from device.reference import ReferenceOps, ReferenceWeight, canonical_shape
from tests.device.closeness import assert_close

REFERENCE = ReferenceOps()
GROUPS = [32, 64, 128, 20]
SHAPES = 70


def whole_numbers(bits, outputs, inputs, group, symmetric, scale_dtype):
    groups = -(-inputs // group)
    codes = torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8)
    zeros = torch.randint(1 << bits, (outputs, groups), dtype=torch.uint8)
    scales = (torch.rand(outputs, groups) / 2 ** (bits - 1) + 1e-4).to(scale_dtype)
    return IntWeight(codes, scales, torch.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros, group, bits)


def float8(outputs, inputs, group):
    bits = torch.randint(256, (outputs, inputs), dtype=torch.uint8)
    bits[(bits & 0x7F) == 0x7F] = 0
    scales = torch.rand(outputs, -(-inputs // group)) / 64 + 1e-4
    return Float8Weight(bits.view(torch.float8_e4m3fn), scales, group)


def random_weight(kind, outputs, inputs, seed):
    if kind == "float8":
        return float8(outputs, inputs, (128, 128, 64, inputs)[seed % 4])
    group = GROUPS[seed % 4] if seed % 5 else inputs
    dtype = (torch.float16, torch.bfloat16, torch.float32)[seed % 3]
    weight = whole_numbers(4 if kind == "int4" else 8, outputs, inputs, group, bool(seed % 2), dtype)
    # Channels in another order, with gaps.
    if seed % 7 == 3 and group % 32 == 0 and inputs > 8:
        order = torch.randperm(inputs, dtype=torch.int32)
        order[order >= inputs - 5] = -1
        weight = replace(weight, order=order)
    return weight


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_linear_over_random_shapes(cmodel, dtype, kind):
    torch.manual_seed(0)
    for seed in range(SHAPES):
        rows, outputs, inputs = (int(torch.randint(1, limit, ())) for limit in (45, 150, 300))
        weight = random_weight(kind, outputs, 2 * inputs, seed)
        x = torch.randn(rows, canonical_shape(weight)[1]).to(dtype)
        bias = torch.randn(outputs).to(dtype) if seed % 2 else None
        expected = REFERENCE.linear(x, ReferenceWeight(weight), bias)
        assert_close(cmodel.ops.linear(x, cmodel.pack(weight), bias), expected)


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
@pytest.mark.parametrize("intermediate", [64, 90])
def test_gated_mlp(cmodel, dtype, kind, intermediate):
    torch.manual_seed(0)
    for seed, rows in enumerate((1, 7, 40)):
        gate_up = random_weight(kind, 2 * intermediate, 128, seed)
        down = random_weight(kind, 50, intermediate, seed)
        x = torch.randn(rows, 128).to(dtype) / 8
        expected = REFERENCE.gated_mlp(x, ReferenceWeight(gate_up), ReferenceWeight(down), "silu")
        assert_close(cmodel.ops.gated_mlp(x, cmodel.pack(gate_up), cmodel.pack(down), "silu"), expected)


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_a_row_has_the_same_bits_alone(cmodel, dtype, kind):
    torch.manual_seed(0)
    for seed in range(6):
        packed = cmodel.pack(random_weight(kind, 96, 512, seed))
        x = torch.randn(600, packed.in_features).to(dtype)
        whole = cmodel.ops.linear(x, packed)
        for start, count in ((0, 1), (599, 1), (3, 2), (100, 13), (90, 17), (50, 45), (30, 300)):
            assert torch.equal(cmodel.ops.linear(x[start : start + count], packed), whole[start : start + count])


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_every_code(cmodel, dtype, kind):
    # Row by row the identity reads the weight's columns.
    codes = torch.arange(256, dtype=torch.uint8).repeat(1, 1)
    if kind == "float8":
        codes[(codes & 0x7F) == 0x7F] = 0
        weight = Float8Weight(codes.view(torch.float8_e4m3fn), torch.ones(1, 2))
    elif kind == "int4":
        weight = IntWeight(codes, torch.ones(1, 4), torch.full((1, 4), 3, dtype=torch.uint8), 128)
    else:
        weight = IntWeight(codes, torch.ones(1, 4), torch.tensor([[0, 1, 128, 255]], dtype=torch.uint8), 64, 8)
    packed = cmodel.pack(weight)
    x = torch.eye(packed.in_features, dtype=dtype)
    assert torch.equal(cmodel.ops.linear(x, packed), REFERENCE.linear(x, ReferenceWeight(weight)))


def test_weights_stay_small(cmodel):
    dense = 1024 * 1024 * 2
    assert cmodel.pack(whole_numbers(4, 1024, 1024, 128, True, torch.float16)).nbytes < 0.28 * dense
    assert cmodel.pack(float8(1024, 1024, 128)).nbytes < 0.52 * dense
