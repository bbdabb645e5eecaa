"""Weights brought to one kind stand for the same numbers, whatever each of them was."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from device.interface import DenseWeight, Float8Weight, IntWeight
from device.reference import canonical_shape, dequantize
from sophserve.model.canonical import are_alike, float8_weight, int_weight, make_alike, same_order, stack_weights

OUTPUTS, INPUTS = 24, 256


def whole_numbers(size=32, *, bits=4, act_order=False, share=slice(0, INPUTS), seed=0, scale_dtype=torch.float16):
    """A rank's share of a weight in groups of so many inputs."""
    random_numbers = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (OUTPUTS, INPUTS), generator=random_numbers).to(torch.uint8)
    groups = torch.arange(INPUTS) // size
    if act_order:
        groups = groups[torch.randperm(INPUTS, generator=random_numbers)]
    count = int(groups.max()) + 1
    scales = torch.rand(OUTPUTS, count, generator=random_numbers).to(scale_dtype)
    zeros = torch.randint(0, 2**bits, (OUTPUTS, count), generator=random_numbers).to(torch.uint8)
    return int_weight(codes[:, share].contiguous(), scales, zeros, groups[share], bits)


def float8(size=128, seed=0):
    random_numbers = torch.Generator().manual_seed(seed)
    groups = torch.arange(INPUTS) // size
    values = torch.randn(OUTPUTS, INPUTS, generator=random_numbers).to(torch.float8_e4m3fn)
    scales = torch.rand(OUTPUTS, int(groups.max()) + 1, generator=random_numbers)
    return float8_weight(values, scales, groups)


def dense(seed=0):
    return DenseWeight(torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed)))


HALF = slice(0, INPUTS // 2)
ALIKE = {
    "the same": [whole_numbers(seed=seed) for seed in range(3)],
    "orders of their own": [whole_numbers(act_order=True, seed=seed) for seed in range(3)],
    "one without an order": [whole_numbers(act_order=True), whole_numbers(seed=1)],
    "other group sizes": [whole_numbers(size) for size in (32, 64, 96, 128)],
    "other group sizes in an order": [whole_numbers(size, act_order=True, seed=size) for size in (32, 64)],
    "channels among groups": [whole_numbers(INPUTS), whole_numbers(32)],
    "channels in an odd share": [whole_numbers(INPUTS, share=slice(0, 40)), whole_numbers(32, share=slice(0, 40))],
    "gaps": [whole_numbers(64, act_order=True, share=HALF, seed=seed) for seed in range(4)],
    "gaps of 8 bits": [whole_numbers(64, act_order=True, share=HALF, seed=seed, bits=8) for seed in range(4)],
    "gaps and none": [whole_numbers(64, act_order=True, share=HALF), whole_numbers(64, share=HALF)],
    "4 and 8 bits": [whole_numbers(bits=4), whole_numbers(64, bits=8), whole_numbers(bits=4, act_order=True)],
    "scales of other dtypes": [whole_numbers(), whole_numbers(scale_dtype=torch.bfloat16)],
    "float8": [float8(seed=seed) for seed in range(3)],
    "float8 blocks, channels": [float8(), float8(INPUTS), float8(96)],
}
MIXED = {
    "whole numbers and float8": [whole_numbers(), float8()],
    "dense among quantized": [float8(), dense()],
    "dense": [dense(), dense(1)],
}


def test_the_cases_have_gaps():
    """Otherwise they would test nothing."""
    assert len({canonical_shape(each) for each in ALIKE["gaps"]}) == 1
    assert len({each.values.shape for each in ALIKE["gaps"]}) > 1


@pytest.mark.parametrize("case", ALIKE)
def test_alike_weights_are_of_one_form(case):
    weights = ALIKE[case]
    alike = make_alike(weights, torch.bfloat16)
    for each, before in zip(alike, weights, strict=True):
        assert torch.equal(dequantize(each), dequantize(before))
    assert {type(each) for each in alike} == {type(weights[0])}
    assert len({(each.values.shape, each.group_size, each.scales.shape, each.scales.dtype) for each in alike}) == 1
    # What kernels take: groups of a multiple of 32 inputs, or one.
    assert alike[0].group_size % 32 == 0 or alike[0].scales.shape[1] == 1
    if isinstance(weights[0], IntWeight):
        assert len({each.bits for each in alike}) == 1
        assert len({each.order is None for each in alike}) == 1


@pytest.mark.parametrize("case", MIXED)
def test_others_become_dense(case):
    for each, before in zip(make_alike(MIXED[case], torch.bfloat16), MIXED[case], strict=True):
        exact = before.values if isinstance(before, DenseWeight) else dequantize(before)
        assert isinstance(each, DenseWeight) and torch.equal(each.values, exact.bfloat16())


def test_a_mixture_is_told_once(caplog):
    for _ in range(3):
        make_alike(MIXED["dense"], torch.float16)
        make_alike(MIXED["whole numbers and float8"], torch.float16)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith("take the memory of float16")


@pytest.mark.parametrize("case", [*ALIKE, *MIXED])
def test_stacked_weights_stand_for_their_parts(case):
    weights = (ALIKE | MIXED)[case]
    stacked = stack_weights(weights, torch.float32)
    assert torch.equal(dequantize(stacked), torch.cat([dequantize(each) for each in weights]))
    same_order = all(
        torch.equal(left.order, right.order) if left.order is not None and right.order is not None
        else left.order is right.order
        for left, right in pairwise(weights)
        if isinstance(left, IntWeight) and isinstance(right, IntWeight)
    )  # fmt: skip
    assert isinstance(stacked, DenseWeight) == (case in MIXED or not same_order)


def test_random_mixtures_of_shares():
    """Any group size, order, number of bits and part of the inputs, as `dynamic` of GPTQ gives each expert its own."""
    choose = random.Random(0)
    for seed in range(60):
        start, stop = sorted(choose.sample(range(0, INPUTS + 1, 16), 2))
        weights = [
            whole_numbers(
                choose.choice([16, 32, 64, 128, INPUTS]),
                bits=choose.choice([4, 8]),
                act_order=choose.random() < 0.5,
                share=slice(start, stop),
                seed=seed * 10 + index,
            )
            for index in range(3)
        ]
        for each, before in zip(make_alike(weights, torch.float32), weights, strict=True):
            assert torch.equal(dequantize(each), dequantize(before)), (seed, weights)


def test_nothing_is_copied_that_fits():
    weights = ALIKE["orders of their own"]
    alike = make_alike(weights, torch.bfloat16)
    assert all(each.values is before.values for each, before in zip(alike, weights, strict=True))
    floats = [replace(each) for each in ALIKE["float8"]]
    assert all(isinstance(each, Float8Weight) for each in make_alike(floats, torch.bfloat16))


@pytest.mark.parametrize("case", [*ALIKE, *MIXED])
def test_what_is_of_one_form_is_taken_as_it_is(case):
    weights = (ALIKE | MIXED)[case]
    assert are_alike(weights) == (case in ("the same", "orders of their own", "float8", "dense"))
    if are_alike(weights) and case != "dense":
        for each, before in zip(make_alike(weights, torch.bfloat16), weights, strict=True):
            assert torch.equal(each.values.view(torch.uint8), before.values.view(torch.uint8))
            assert torch.equal(each.scales, before.scales) and each.group_size == before.group_size


def test_orders_that_are_the_same():
    first, second, plain = whole_numbers(act_order=True), whole_numbers(act_order=True, seed=1), whole_numbers()
    assert same_order(first, first) and same_order(plain, plain) and same_order(float8(), float8())
    assert not same_order(first, second) and not same_order(first, plain)
