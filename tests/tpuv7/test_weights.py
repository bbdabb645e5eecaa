"""Weights as they are laid out for the chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from device.interface import CanonicalWeight, DenseWeight, Float8Weight, IntWeight, UnsupportedOperator
from device.tpuv7.device import Tpuv7Device
from device.tpuv7.tensors import ChipTensor
from device.tpuv7.weights import MOST_CHUNK_INPUTS, CodesWeight, RecordLayout
from tests.tpuv7.test_quantized import quantized


def int4(inputs: int, group_size: int, outputs: int = 3) -> IntWeight:
    generator = torch.Generator().manual_seed(inputs)
    weight = quantized(generator, "int4", outputs, inputs, group_size, torch.float16)
    assert isinstance(weight, IntWeight)
    return weight


def test_a_record_has_codes_then_scales_then_zeros() -> None:
    values = torch.tensor([[0x21, 0x43, 0x65, 0x87, 0xA9]], dtype=torch.uint8)
    scales = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float16)
    weight = IntWeight(values, scales, torch.tensor([[7, 8, 9]], dtype=torch.uint8), 4)
    layout = RecordLayout.of(weight)
    found = bytes(layout.records(weight)[0].tolist())
    assert found == bytes.fromhex("21436587a9 000000 003c 0040 0042 070809 000000")
    assert layout.row_bytes == len(found)


@pytest.mark.parametrize(
    ("bits", "middle", "expected"), [(4, 8, "a9cb 0000 003c 0000"), (8, 128, "a1c3 0000 003c 0000")]
)
def test_codes_have_a_sign_where_zeros_are_the_middle(bits: Literal[4, 8], middle: int, expected: str) -> None:
    values, zeros = torch.tensor([[0x21, 0x43]], dtype=torch.uint8), torch.tensor([[middle]], dtype=torch.uint8)
    weight = IntWeight(values, torch.tensor([[1.0]], dtype=torch.float16), zeros, 4, bits)
    assert bytes(RecordLayout.of(weight).records(weight)[0].tolist()) == bytes.fromhex(expected)


def test_a_float8_record_has_no_zeros() -> None:
    weight = Float8Weight(torch.tensor([[1.0, 2.0]]).to(torch.float8_e4m3fn), torch.tensor([[0.5]]), 2)
    found = bytes(RecordLayout.of(weight).records(weight)[0].tolist())
    assert found == bytes.fromhex("3840 0000 0000003f")


@pytest.mark.parametrize("group_size", [1, 20, 32, 128, 683, 1000, 2048, 2053, 3000, 100_000])
@pytest.mark.parametrize("inputs", [2, 130, 4864, 18944])
def test_records_are_short_and_have_whole_groups(inputs: int, group_size: int) -> None:
    weight = int4(inputs, group_size)
    layout = RecordLayout.of(weight)
    assert layout.chunk <= MOST_CHUNK_INPUTS and layout.chunk % 2 == 0
    assert layout.chunk % layout.group_size == 0
    assert group_size >= inputs or group_size % layout.group_size == 0
    assert layout.records(weight).shape == (3, layout.row_bytes)


def test_a_long_group_has_its_scale_in_each_record() -> None:
    weight = int4(6000, 3000)
    layout = RecordLayout.of(weight)
    assert (layout.chunk, layout.group_size) == (1500, 1500)
    scales = layout.records(weight)[0].unflatten(0, (4, -1))[:, 752:754].contiguous().view(torch.float16).flatten()
    assert scales.tolist() == weight.scales[0].repeat_interleave(2).tolist()


@pytest.mark.parametrize("group_size", [32, 128])
def test_real_shapes_take_what_the_checkpoint_takes(group_size: int) -> None:
    for inputs in (896, 4864, 3584, 18944, 29568):
        weight = int4(inputs, group_size)
        given = weight.values.nbytes + weight.scales.nbytes + weight.zeros.nbytes
        assert given <= 3 * RecordLayout.of(weight).row_bytes <= 1.02 * given


def on_meta(weight: CanonicalWeight) -> CanonicalWeight:
    fields = {name: each.to("meta") if isinstance(each, Tensor) else each for name, each in vars(weight).items()}
    return type(weight)(**fields)


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_sizes_are_known_without_values(tpuv7: Tpuv7Device, kind: str) -> None:
    weight = quantized(torch.Generator().manual_seed(0), kind, 5, 300, 64, torch.float16)
    free, _ = tpuv7.memory()
    planned = tpuv7.pack(on_meta(weight))
    assert tpuv7.memory()[0] == free
    packed = tpuv7.pack(weight)
    assert isinstance(packed, CodesWeight)
    assert (planned.out_features, planned.in_features, planned.nbytes) == (5, 300, packed.nbytes)


def test_an_order_is_on_the_chip_and_counted(tpuv7: Tpuv7Device) -> None:
    weight = quantized(torch.Generator().manual_seed(0), "int4", 5, 40, 20, torch.float16, order=True)
    assert isinstance(weight, IntWeight) and weight.order is not None
    packed = tpuv7.pack(weight)
    assert isinstance(packed, CodesWeight) and isinstance(packed.order, ChipTensor)
    assert packed.in_features == 37
    assert packed.order.to_host().int().tolist() == [65535 if each < 0 else each for each in weight.order.tolist()]
    assert packed.nbytes == 5 * RecordLayout.of(weight).row_bytes + 2 * 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: DenseWeight(torch.empty(1, 65537, dtype=torch.bfloat16, device="meta")),
        lambda: on_meta(int4(65538, 128, 1)),
        lambda: on_meta(int4(65538, 100_000, 1)),
    ],
    ids=["dense", "int4", "channel"],
)
def test_too_many_inputs_are_refused_in_words(tpuv7: Tpuv7Device, make: Callable[[], CanonicalWeight]) -> None:
    with pytest.raises(UnsupportedOperator, match=r"with up to 6\d{4} inputs, not 6553"):
        tpuv7.pack(make())


def test_float32_weights_are_refused_in_words(tpuv7: Tpuv7Device) -> None:
    with pytest.raises(UnsupportedOperator, match="float32"):
        tpuv7.pack(DenseWeight(torch.zeros(2, 2)))


def test_int8_activations_are_refused_in_words(tpuv7: Tpuv7Device) -> None:
    with pytest.raises(UnsupportedOperator, match="no kernel for activations in int8"):
        tpuv7.pack(on_meta(replace(int4(64, 32), activations="blocks")))


def test_wide_norms_are_refused_in_words(tpuv7: Tpuv7Device) -> None:
    x = torch.zeros(1, 16385, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedOperator, match="up to 16384 values at once, not 16385"):
        tpuv7.ops.rms_norm(x, x[0], 1e-6)
