"""Weights in the layouts that the cmodel computes with."""

from __future__ import annotations

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels, check_status
from device.interface import CanonicalWeight, DenseWeight, Float8Weight, Int4Weight
from device.reference import dequantize

PANEL = 32
"""Outputs that stand side by side in a packed weight: see native/kernels/gemm.h."""


CODES = {Int4Weight: 0, Float8Weight: 1}
"""The numbers of native/kernels/quantized.cpp."""


class TorchWeight:
    """A dense weight as torch's own linear reads it, `[out_features, in_features]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class PanelWeight:
    """A dense weight in panels of 32 outputs, the layout of native/kernels/gemm.h, in one flat tensor.

    panels: `[panels, depth / piece, 32, piece]`: depth inputs, those beyond in_features 0, piece of them side by side.
    """

    def __init__(self, kernels: Kernels, values: Tensor) -> None:
        self.dtype = values.dtype
        self.out_features, self.in_features = values.shape
        self.piece = 2 if values.dtype == torch.bfloat16 else 1
        self.depth = _round_up(self.in_features, 32) if values.dtype == torch.bfloat16 else self.in_features
        self.panels = torch.empty(_round_up(self.out_features, PANEL) * self.depth, dtype=values.dtype)
        self.nbytes = self.panels.nbytes
        kernels.prefer_huge_pages(self.panels.data_ptr(), self.nbytes)
        check_status(
            "pack",
            kernels.pack_linear(
                dtype=DTYPES[values.dtype],
                values=values.contiguous(),
                outputs=self.out_features,
                inputs=self.in_features,
                packed=self.panels,
            ),
        )


class QuantizedWeight:
    """An int4 or float8 weight in panels of 32 outputs, the layout of native/kernels/codes.h.

    codes: uint8, flat, 4 or 8 bits an input. scales: `[panels, groups, 32]`. shifts: int8 like scales, 8 minus the zero
    points, or None where all of them are 8.
    """

    def __init__(self, kernels: Kernels, weight: Int4Weight | Float8Weight, group: int) -> None:
        self.kind = CODES[type(weight)]
        per_byte = 2 if isinstance(weight, Int4Weight) else 1
        self.out_features, self.in_features = weight.values.shape[0], weight.values.shape[1] * per_byte
        self.group = group
        self.shifts: Tensor | None = None
        if isinstance(weight, Int4Weight):
            self.scales = self._spread(weight.scales, weight.group_size)
            if not bool((weight.zeros == 8).all()):
                self.shifts = self._spread((8 - weight.zeros.to(torch.int8)), weight.group_size)
        else:
            scales = weight.scales.repeat_interleave(weight.block, 0)[: self.out_features]
            self.scales = self._spread(scales.float(), weight.block)
        size = _round_up(self.out_features, PANEL) * _round_up(self.in_features, 32) // per_byte
        self.codes = torch.empty(size, dtype=torch.uint8)
        kernels.prefer_huge_pages(self.codes.data_ptr(), size)
        self.nbytes = size + self.scales.nbytes + (0 if self.shifts is None else self.shifts.nbytes)
        check_status(
            "pack",
            kernels.pack_codes(
                codes=self.kind,
                values=weight.values.contiguous(),
                outputs=self.out_features,
                inputs=self.in_features,
                packed=self.codes,
                group=group,
                scales=self.scales,
            ),
        )

    def _spread(self, values: Tensor, group_size: int) -> Tensor:
        """What the canonical weight has for each output and group, for each of ours."""
        groups = -(-self.in_features // self.group)
        at = torch.arange(groups) * self.group // group_size
        padded = values.new_zeros(_round_up(self.out_features, PANEL), groups)
        padded[: self.out_features] = values[:, at]
        return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


class DequantizedWeight(PanelWeight):
    """A quantized weight whose groups the kernels do not take, as a dense one of float32: exact, and 4 bytes an input.

    It takes x of any dtype.
    """

    def __init__(self, kernels: Kernels, weight: Int4Weight | Float8Weight) -> None:
        super().__init__(kernels, dequantize(weight))


NativeWeight = PanelWeight | QuantizedWeight


def pack(kernels: Kernels, weight: CanonicalWeight) -> NativeWeight:
    """Copy a weight into the kernels' layout.

    The quantized kernels take groups of a multiple of 32 inputs, or one group of any size; a weight with others becomes
    a DequantizedWeight.
    """
    if isinstance(weight, DenseWeight):
        return PanelWeight(kernels, weight.values)
    group = _native_group(weight)
    return DequantizedWeight(kernels, weight) if group is None else QuantizedWeight(kernels, weight, group)


def _native_group(weight: Int4Weight | Float8Weight) -> int | None:
    """The largest size up to 128 that the kernels can cut the weight's groups into."""
    size = weight.group_size if isinstance(weight, Int4Weight) else weight.block
    if weight.scales.shape[1] == 1:
        return 128
    return next((group for group in (128, 96, 64, 32) if size % group == 0), None)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
