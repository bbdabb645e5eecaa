"""Weights in the layouts that the cmodel computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels
from device.interface import CanonicalWeight, DenseWeight, ExpertsWeight, Float8Weight, IntWeight
from device.reference import canonical_shape, dequantize

PANEL = 32
"""Outputs that stand side by side in a packed weight: see native/kernels/gemm.h."""

CODES = {4: 3, "float8": 4, 8: 5}
"""What weights consist of, by bits of whole numbers, beside kernels.DTYPES: the numbers of native/kernels/linear.h."""

LAYOUT = "panels 2"
"""Changes whenever the layout of QuantizedWeight does."""

_NUMBERS = ("type", "group", "inputs", "out_features", "in_features")
_TENSORS = ("codes", "scales", "shifts", "order")


class TorchWeight:
    """A dense weight in rows, `[out_features, in_features]`, as embeddings and torch's own linear are read."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class PanelWeight:
    """A dense weight in panels of 32 outputs, the layout of native/kernels/gemm.h, in one flat tensor.

    It takes x of its own dtype; one of float32 takes any.

    panels: `[panels, depth / piece, 32, piece]`: depth inputs, those beyond in_features 0, piece of them side by side.
    """

    def __init__(self, kernels: Kernels, values: Tensor) -> None:
        self.dtype = values.dtype
        self.out_features, self.in_features = values.shape
        self.piece = 2 if values.dtype == torch.bfloat16 else 1
        self.depth = panel_depth(self.in_features, values.dtype)
        size = _round_up(self.out_features, PANEL) * self.depth
        self.panels = torch.empty(size, dtype=values.dtype, device=values.device)
        self.nbytes = self.panels.nbytes
        if values.is_meta:
            return
        kernels.prefer_huge_pages(self.panels.data_ptr(), self.nbytes)
        kernels.pack_linear(
            dtype=DTYPES[values.dtype],
            values=values.contiguous(),
            outputs=self.out_features,
            inputs=self.in_features,
            packed=self.panels,
        )

    def fields(self) -> dict[str, Any]:
        """Those of a kernel's weight."""
        return {"weight": self.panels, "weight_type": DTYPES[self.dtype], "inputs": self.in_features}


class QuantizedWeight:
    """A weight of 4 or 8 bits in panels of 32 outputs, the layout of native/kernels/codes.h.

    codes: uint8, flat. scales: `[panels, groups, 32]`. shifts: int8 like scales, the zero points minus the middle of
    the codes, or None where all of them are the middle. order: of IntWeight. inputs: those of a packed row.
    """

    def __init__(self, kernels: Kernels, weight: IntWeight | Float8Weight, group: int) -> None:
        self.group = group
        self.out_features, self.in_features = canonical_shape(weight)
        self.shifts: Tensor | None = None
        self.order: Tensor | None = None
        if isinstance(weight, IntWeight):
            bits: int = weight.bits
            self.type = CODES[bits]
            self.order = None if weight.order is None else weight.order.int().contiguous()
            middle = 1 << (bits - 1)
            zeros = weight.zeros
            self.inputs = weight.values.shape[1] * 8 // bits
            self.scales = self._spread(weight.scales, weight.group_size)
            if not bool((zeros == middle).all()):
                self.shifts = self._spread((zeros.short() - middle).char(), weight.group_size)
        else:
            bits, self.type = 8, CODES["float8"]
            self.inputs = self.in_features
            self.scales = self._spread(weight.scales.float(), weight.group_size)
        size = _round_up(self.out_features, PANEL) * _round_up(self.inputs, 32) * bits // 8
        self.codes = torch.empty(size, dtype=torch.uint8, device=weight.values.device)
        kept = (self.codes, self.scales, self.shifts, self.order)
        self.nbytes = sum(tensor.nbytes for tensor in kept if tensor is not None)
        if weight.values.is_meta:
            return
        kernels.prefer_huge_pages(self.codes.data_ptr(), size)
        kernels.pack_codes(
            weight_type=self.type,
            values=weight.values.contiguous(),
            outputs=self.out_features,
            inputs=self.inputs,
            packed=self.codes,
            group=group,
            scales=self.scales,
        )

    def fields(self) -> dict[str, Any]:
        """Those of a kernel's weight."""
        return {
            "weight": self.codes,
            "weight_type": self.type,
            "inputs": self.inputs,
            "order": self.order,
            "group": self.group,
            "scales": self.scales,
            "scales_dtype": DTYPES[self.scales.dtype],
            "shifts": self.shifts,
        }

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """What `restore` makes this weight of."""
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in _NUMBERS}, tensors

    @classmethod
    def restore(cls, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        weight = cls.__new__(cls)
        for name in _NUMBERS:
            setattr(weight, name, numbers[name])
        for name in _TENSORS:
            setattr(weight, name, tensors.get(name))
        weight.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        return weight

    def _spread(self, values: Tensor, group_size: int) -> Tensor:
        """What the canonical weight has for each output and group, for each of ours."""
        groups = -(-self.inputs // self.group)
        at = torch.arange(groups) * self.group // group_size
        padded = values.new_zeros(_round_up(self.out_features, PANEL), groups)
        padded[: self.out_features] = values[:, at]
        return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def pack(kernels: Kernels, weight: CanonicalWeight) -> PanelWeight | QuantizedWeight:
    """Copy a weight into the kernels' layout.

    The quantized kernels take groups of a multiple of 32 inputs, or one group of any size; a weight with others becomes
    a dense one of float32: exact, and 4 bytes an input.
    """
    if isinstance(weight, DenseWeight):
        return PanelWeight(kernels, weight.values)
    group = _native_group(weight)
    return PanelWeight(kernels, dequantize(weight)) if group is None else QuantizedWeight(kernels, weight, group)


class ExpertsOfPanels:
    """The experts of a layer, each with two weights in panels."""

    def __init__(self, kernels: Kernels, weight: ExpertsWeight) -> None:
        self.gate_up = [pack(kernels, each) for each in weight.gate_up]
        self.down = [pack(kernels, each) for each in weight.down]
        self.experts = len(self.down)
        self.in_features = self.out_features = self.down[0].out_features
        self.intermediate = self.down[0].in_features
        self.nbytes = sum(each.nbytes for each in [*self.gate_up, *self.down])


def panel_depth(inputs: int, dtype: torch.dtype) -> int:
    """The inputs of a panel of a dense weight, padding included."""
    return _round_up(inputs, 32) if dtype == torch.bfloat16 else inputs


def _native_group(weight: IntWeight | Float8Weight) -> int | None:
    """The largest size up to 128 that the kernels can cut the weight's groups into."""
    size = weight.group_size
    if weight.scales.shape[1] == 1:
        return 128
    return next((group for group in (128, 96, 64, 32) if size % group == 0), None)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
