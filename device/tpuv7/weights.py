"""Weights in the chip's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from device.interface import CanonicalWeight, DenseWeight, Float8Weight, IntWeight, UnsupportedOperator
from device.reference import canonical_shape
from device.tpuv7.chip import Chip
from device.tpuv7.commands import DTYPES, Codes, Linear
from device.tpuv7.tensors import ChipTensor, on_chip

# What the kernel adds up at once, and what its local memory holds of a row of x (kernels/linear.c).
MOST_CHUNK_INPUTS = 2048
MOST_INPUTS = 65536
_LINE_VALUES = 32


class ChipWeight:
    """A weight `[out_features, in_features]` on the chip.

    order: uint16 `[inputs]`, the channel of x that each input of the kernel multiplies, or None for all as they come.
    """

    order: ChipTensor | None = None

    def __init__(self, weight: CanonicalWeight, chunk: int) -> None:
        self.out_features, self.in_features = canonical_shape(weight)
        inputs = len(weight.order) if isinstance(weight, IntWeight) and weight.order is not None else self.in_features
        most = MOST_INPUTS // _round_up(chunk, _LINE_VALUES) * chunk
        if inputs > most:
            raise UnsupportedOperator(f"tpuv7 takes weights of this kind with up to {most} inputs, not {inputs}")
        self._inputs = inputs
        self.nbytes = 0

    def fill(self, command: Linear) -> None:
        """Say in a command where the weight is, and what."""
        command.inputs, command.outputs = self._inputs, self.out_features


class PlainWeight(ChipWeight):
    """Values in 16 bits, row by row as on disk."""

    def __init__(self, chip: Chip, weight: DenseWeight) -> None:
        values = weight.values
        if values.dtype not in (torch.bfloat16, torch.float16):
            raise UnsupportedOperator(f"tpuv7 has no kernel for weights of {str(values.dtype).removeprefix('torch.')}")
        super().__init__(weight, _LINE_VALUES)
        self.nbytes = values.nbytes
        self._values = None if values.is_meta else on_chip(chip, values)

    def fill(self, command: Linear) -> None:
        super().fill(command)
        command.weight = self.table().address
        command.codes = Codes.PLAIN

    def table(self) -> ChipTensor:
        """The values, for an embedding."""
        assert self._values is not None
        return self._values


class CodesWeight(ChipWeight):
    """Whole numbers or float8 with scales, in the records of kernels/dequantize.h."""

    def __init__(self, chip: Chip, weight: IntWeight | Float8Weight) -> None:
        if isinstance(weight, IntWeight) and weight.activations != "float":
            raise UnsupportedOperator(
                "tpuv7 has no kernel for activations in int8, as this weight takes them; give it one that takes them "
                "in 16 bits"
            )
        self._layout = layout = RecordLayout.of(weight)
        super().__init__(weight, layout.chunk)
        self._scale_dtype = weight.scales.dtype
        self.nbytes = self.out_features * layout.row_bytes
        order = weight.order if isinstance(weight, IntWeight) else None
        if order is not None:
            self.nbytes += 2 * len(order)
        if weight.values.is_meta:
            return
        self._records = on_chip(chip, layout.records(weight))
        if order is not None:
            # -1 becomes a channel that there is not.
            self.order = on_chip(chip, order.to(torch.int16).view(torch.uint16))

    def fill(self, command: Linear) -> None:
        super().fill(command)
        layout = self._layout
        command.weight, command.codes = self._records.address, layout.codes
        command.row_bytes, command.chunk, command.group_size = layout.row_bytes, layout.chunk, layout.group_size
        command.scale_dtype, command.has_zeros = DTYPES[self._scale_dtype], layout.has_zeros


@dataclass(frozen=True)
class RecordLayout:
    """How rows of codes become records, each of up to `chunk` inputs in groups of group_size.

    Where all zeros are the middle of the codes there are none: the codes get a sign.
    """

    codes: Codes
    inputs: int
    chunk: int
    group_size: int
    scale_bytes: int
    has_zeros: bool

    @classmethod
    def of(cls, weight: IntWeight | Float8Weight) -> RecordLayout:
        bits = weight.bits if isinstance(weight, IntWeight) else 8
        codes = Codes.FLOAT8 if isinstance(weight, Float8Weight) else Codes.INT4 if bits == 4 else Codes.INT8
        inputs = weight.values.shape[1] * 8 // bits
        chunk, group_size = _chunk_and_group(inputs, weight.group_size)
        has_zeros = isinstance(weight, IntWeight) and not _all_equal(weight.zeros, 1 << (bits - 1))
        return cls(codes, inputs, chunk, group_size, weight.scales.itemsize, has_zeros)

    @property
    def row_bytes(self) -> int:
        whole, rest = divmod(self.inputs, self.chunk)
        return whole * self.record_bytes(self.chunk) + (self.record_bytes(rest) if rest else 0)

    def record_bytes(self, inputs: int) -> int:
        codes = inputs // 2 if self.codes == Codes.INT4 else inputs
        groups = -(-inputs // self.group_size)
        of_group = self.scale_bytes + self.has_zeros
        return _round_up(_round_up(codes, 4) + groups * of_group, 4)

    def records(self, weight: IntWeight | Float8Weight) -> Tensor:
        """uint8 `[out_features, row_bytes]`."""
        codes_per_byte = 2 if self.codes == Codes.INT4 else 1
        values = weight.values.view(torch.uint8)
        if isinstance(weight, IntWeight) and not self.has_zeros:
            values = values ^ (0x88 if self.codes == Codes.INT4 else 0x80)
        parts = []
        for start in range(0, self.inputs, self.chunk):
            end = min(start + self.chunk, self.inputs)
            groups = torch.arange(start, end, self.group_size) // weight.group_size
            parts.append(_padded(values[:, start // codes_per_byte : end // codes_per_byte]))
            of_groups = [weight.scales[:, groups].view(torch.uint8)]
            if isinstance(weight, IntWeight) and self.has_zeros:
                of_groups.append(weight.zeros[:, groups])
            parts.append(_padded(torch.cat(of_groups, 1)))
        return torch.cat(parts, 1)


def pack(weight: CanonicalWeight, chip: Chip) -> ChipWeight:
    """Copy a weight to the chip. Raises UnsupportedOperator for one that no kernel takes."""
    return PlainWeight(chip, weight) if isinstance(weight, DenseWeight) else CodesWeight(chip, weight)


def _chunk_and_group(inputs: int, group_size: int) -> tuple[int, int]:
    """Inputs of a record, an even number, and of a group, which a record has whole ones of.

    A group that is longer than a record becomes several of one scale.
    """
    if group_size >= inputs:
        chunk = _even_share(inputs, _LINE_VALUES)
        return chunk, chunk
    group = next(
        size for size in range(group_size, 0, -1) if not group_size % size and _unit(size) <= MOST_CHUNK_INPUTS
    )
    return _even_share(inputs, _unit(group)), group


def _unit(group_size: int) -> int:
    return math.lcm(group_size, 2)


def _even_share(inputs: int, unit: int) -> int:
    """Multiples of unit, all but the last equal and all nearly so."""
    chunks = -(-inputs // (MOST_CHUNK_INPUTS // unit * unit))
    return _round_up(-(-inputs // chunks), unit)


def _all_equal(numbers: Tensor, number: int) -> bool:
    return not numbers.is_meta and bool((numbers == number).all())


def _padded(columns: Tensor) -> Tensor:
    """To a multiple of 4 bytes."""
    return F.pad(columns, (0, -columns.shape[1] % 4))


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
