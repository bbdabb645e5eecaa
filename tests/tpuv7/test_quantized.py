"""Weights that are stored as codes, multiplied on the chip, against the reference."""

from __future__ import annotations

import random
from typing import cast

import pytest
import torch
from torch import Tensor

from device.interface import CanonicalWeight, Float8Weight, IntWeight, Ops
from device.reference import ReferenceOps, canonical_shape, dequantize, reference_weight
from device.tpuv7.build import build_kernels
from device.tpuv7.chip import Chip
from device.tpuv7.device import KERNEL, Tpuv7Device
from device.tpuv7.operators import ChipOps
from device.tpuv7.tensors import ChipTensor
from device.tpuv7.weights import pack
from tests.device.closeness import assert_close

KINDS = ["int4", "int8", "float8"]
SCALES = [torch.float16, torch.bfloat16, torch.float32]


class Case:
    """Random operands. A gated MLP where there is an activation, otherwise a linear."""

    def __init__(
        self,
        kind: str,
        rows: int,
        inputs: int,
        outputs: int,
        group_size: int,
        dtype: torch.dtype = torch.bfloat16,
        *,
        scales: torch.dtype = torch.float16,
        order: bool = False,
        symmetric: bool = False,
        bias: bool = False,
        activation: str = "",
    ) -> None:
        self.generator = torch.Generator().manual_seed(rows * 31 + inputs * 7 + outputs)
        self.activation = activation
        make = lambda out, count: quantized(self.generator, kind, out, count, group_size, scales, order, symmetric)  # noqa: E731
        if activation:
            down = make(inputs, outputs)
            self.weights = [make(2 * canonical_shape(down)[1], inputs), down]
        else:
            self.weights = [make(outputs, inputs)]
        features, channels = canonical_shape(self.weights[0])
        self.x = torch.randn(rows, channels, generator=self.generator).to(dtype)
        self.bias = torch.randn(features, generator=self.generator).to(dtype) if bias else None

    def expected(self) -> Tensor:
        return self._product(cast("Ops", ReferenceOps()), [reference_weight(each) for each in self.weights])

    def found(self, chip: Chip) -> Tensor:
        result = self._product(cast("Ops", ChipOps(chip)), [pack(each, chip) for each in self.weights])
        assert isinstance(result, ChipTensor)
        return result.to_host()

    def _product(self, ops: Ops, weights: list) -> Tensor:
        if self.activation:
            return ops.gated_mlp(self.x, *weights, self.activation)
        return ops.linear(self.x, weights[0], self.bias)


def quantized(
    generator: torch.Generator,
    kind: str,
    outputs: int,
    inputs: int,
    group_size: int,
    scales: torch.dtype,
    order: bool = False,
    symmetric: bool = False,
) -> CanonicalWeight:
    """Random codes. With an order some inputs are padding where inputs are many."""
    inputs += inputs % 2 if kind == "int4" else 0
    groups = -(-inputs // group_size)
    factors = (torch.rand(outputs, groups, generator=generator) + 0.5) / inputs**0.5
    if kind == "float8":
        values = torch.randn(outputs, inputs, generator=generator).to(torch.float8_e4m3fn)
        return Float8Weight(values, factors, group_size)
    bits = 4 if kind == "int4" else 8
    codes = torch.randint(0, 256, (outputs, inputs * bits // 8), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=generator, dtype=torch.uint8)
    if symmetric:
        zeros.fill_(1 << (bits - 1))
    channels = None
    if order:
        channels = torch.randperm(inputs, generator=generator).int()
        channels[channels >= max(1, inputs - 3)] = -1
    return IntWeight(codes, (factors * 2 ** (1 - bits)).to(scales), zeros, group_size, bits, channels)


@pytest.fixture(scope="module")
def one_core(tpuv7: Tpuv7Device) -> Chip:
    runtime = tpuv7.chip.runtime
    kernels = runtime.load(build_kernels())
    return Chip(runtime, lambda arguments: runtime.launch(kernels, KERNEL, arguments, 1))


def check(tpuv7: Tpuv7Device, one_core: Chip, case: Case, label: object = "") -> None:
    """Near the reference, and the same bits on one core."""
    found = case.found(tpuv7.chip)
    assert_close(found, case.expected(), label)
    assert torch.equal(case.found(one_core).view(torch.int16), found.view(torch.int16)), label


def random_case(seed: int) -> Case:
    pick = random.Random(seed)
    kind = pick.choice(KINDS)
    group_size = pick.choice([32, 64, 128, 20, 7, 1, 4096])
    inputs = pick.choice([group_size, 2 * group_size, 896, 65, pick.randint(1, 700), pick.randint(1, 2500)])
    outputs = pick.choice([1, 16, 33, 128, 129, pick.randint(1, 300)])
    # What is rounded to bfloat16 the other way, a weight or an inner value, shows where one value is all there is.
    rows = pick.choice([1, 1, 2, 3, 17, 64, 65]) if outputs > 1 else 65
    activation = pick.choice(["", "", "silu", "gelu", "gelu_tanh"]) if outputs > 1 else ""
    return Case(
        kind,
        rows=rows,
        inputs=min(inputs, 2500),
        outputs=outputs,
        group_size=group_size,
        dtype=pick.choice([torch.bfloat16, torch.float16]),
        scales=pick.choice(SCALES),
        order=kind != "float8" and pick.random() < 0.4,
        bias=pick.random() < 0.5,
        activation=activation,
        symmetric=pick.random() < 0.5,
    )


QUICK = [
    Case("int4", 1, 2, 1, 2),
    Case("int4", 3, 300, 131, 128, torch.float16, bias=True),
    Case("int4", 66, 160, 33, 20, order=True, activation="silu"),
    Case("int8", 2, 2100, 40, 64, scales=torch.bfloat16),
    Case("int8", 1, 95, 700, 4096, torch.float16, scales=torch.float32, order=True),
    Case("float8", 2, 2304, 70, 128, bias=True),
    Case("float8", 5, 77, 64, 32, torch.float16, activation="gelu"),
]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{tuple(case.x.shape)}")
def test_products(tpuv7: Tpuv7Device, one_core: Chip, case: Case) -> None:
    check(tpuv7, one_core, case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 16])
@torch.inference_mode()
def test_a_decode_step_reads_codes_once(tpuv7: Tpuv7Device, kind: str, rows: int) -> None:
    case = Case(kind, rows, 512, 4096, 128)
    x, weight = tpuv7.put(case.x), pack(case.weights[0], tpuv7.chip)
    tpuv7.start_profile(10, 2)
    tpuv7.ops.linear(x, weight)
    [record] = tpuv7.profile_records()
    tpuv7.stop_profile()
    given = sum(each.nbytes for each in vars(case.weights[0]).values() if isinstance(each, Tensor))
    assert given <= weight.nbytes <= 1.01 * given
    # Each core reads x.
    needed = given + 8 * x.nbytes + rows * 4096 * 2
    assert needed <= record.bytes <= 1.02 * needed
    detail = dict(field.split("=") for field in record.detail.split())
    assert int(detail["overlapped"]) >= 0.7 * given
    assert int(detail["local_bytes"]) <= 256 << 10
    assert record.operations == 2 * rows * 512 * 4096


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(48))
def test_random_products(tpuv7: Tpuv7Device, one_core: Chip, seed: int) -> None:
    check(tpuv7, one_core, random_case(seed), seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_code(tpuv7: Tpuv7Device, kind: str, dtype: torch.dtype, symmetric: bool) -> None:
    """Values are float32's, rounded once: products with the identity are the values."""
    codes, size = torch.arange(256, dtype=torch.uint8)[None], 128 if kind == "int4" else 64
    scales = torch.tensor([[1.0, 0.3, 2.7, 0.011]])
    weight: CanonicalWeight
    if kind == "float8":
        codes[(codes & 0x7F) == 0x7F] = 0  # NaN
        weight = Float8Weight(codes.view(torch.float8_e4m3fn), scales, size)
    else:
        middle = 8 if kind == "int4" else 128
        zeros = torch.tensor([[middle] * 4 if symmetric else [0, 1, middle, 2 * middle - 1]], dtype=torch.uint8)
        weight = IntWeight(codes, scales, zeros, size, 4 if kind == "int4" else 8)
    found = tpuv7.ops.linear(torch.eye(canonical_shape(weight)[1], dtype=dtype), tpuv7.pack(weight))
    assert isinstance(found, ChipTensor)
    assert torch.equal(found.to_host(), dequantize(weight).T.to(dtype))


def test_rows_are_permuted_on_one_core_or_two(tpuv7: Tpuv7Device) -> None:
    """Many rows are more than the weight."""
    weight = quantized(torch.Generator().manual_seed(0), "int8", 16, 700, 128, torch.float16, order=True)
    packed, x = tpuv7.pack(weight), torch.randn(600, canonical_shape(weight)[1]).bfloat16()
    tpuv7.start_profile(10, 2)
    tpuv7.ops.linear(x, packed)
    [permute, _] = tpuv7.profile_records()
    tpuv7.stop_profile()
    assert permute.operator == "permute"
    assert 2 * x.nbytes <= permute.bytes <= 3 * x.nbytes
