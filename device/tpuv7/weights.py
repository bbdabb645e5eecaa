"""Weights in the chip's memory."""

from __future__ import annotations

import torch

from device.interface import CanonicalWeight, DenseWeight, UnsupportedOperator
from device.tpuv7.chip import Chip
from device.tpuv7.commands import Codes, Linear
from device.tpuv7.tensors import ChipTensor, on_chip


class ChipWeight:
    """A plain weight, `[out_features, in_features]`, row by row as on disk."""

    def __init__(self, chip: Chip, weight: DenseWeight) -> None:
        values = weight.values
        if values.dtype not in (torch.bfloat16, torch.float16):
            raise UnsupportedOperator(f"tpuv7 has no kernel for weights of {str(values.dtype).removeprefix('torch.')}")
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes
        self._values = None if values.is_meta else on_chip(chip, values)

    def fill(self, command: Linear) -> None:
        """Say in a command where the weight is."""
        command.weight = self.table().address
        command.inputs, command.outputs = self.in_features, self.out_features
        command.codes = Codes.PLAIN

    def table(self) -> ChipTensor:
        """The values, for an embedding."""
        assert self._values is not None
        return self._values


def pack(weight: CanonicalWeight, chip: Chip) -> ChipWeight:
    """Copy a weight to the chip."""
    if isinstance(weight, DenseWeight):
        return ChipWeight(chip, weight)
    raise UnsupportedOperator(f"tpuv7 has no kernel for {type(weight).__name__}")
