"""Weights in the layouts that the cmodel computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels
from device.int8_products import check_span, span_of
from device.interface import CanonicalWeight, DenseWeight, Float8Weight, IntWeight
from device.reference import canonical_shape, dequantize

PANEL = 32
"""Outputs that stand side by side in a packed weight: see native/kernels/gemm.h."""

CODES = {4: 3, "float8": 4, 8: 5}
"""What weights consist of, by bits of whole numbers, beside kernels.DTYPES: the numbers of native/kernels/linear.h."""

LAYOUT = "panels 3"
"""Changes whenever the layout of QuantizedWeight does."""

ACTIVATIONS = {"float": 0, "blocks": 1, "rows": 2}
"""How rows meet whole numbers: the numbers of native/kernels/linear.h."""

_NUMBERS = ("type", "activations", "group", "inputs", "out_features", "in_features")
_TENSORS = ("codes", "scales", "shifts", "order")


class TorchWeight:
    """A dense weight in rows, `[out_features, in_features]`, as embeddings and torch's own linear are read."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class PanelWeight:
    """Dense weights in panels of 32 outputs, the layout of native/kernels/gemm.h.

    It takes x of its own dtype; one of float32 takes any. There are `count` of one shape, each of `halves` that begin
    with a panel of their own.
    panels: `[count, halves, elements]`, the last `[panels, depth / piece, 32, piece]`: depth inputs, those beyond
    in_features 0, piece of them side by side.
    """

    def __init__(self, kernels: Kernels, like: CanonicalWeight, count: int = 1, halves: int = 1) -> None:
        self.dtype = like.values.dtype if isinstance(like, DenseWeight) else torch.float32
        self.out_features, self.in_features = canonical_shape(like)
        self.piece = 2 if self.dtype == torch.bfloat16 else 1
        self.depth = panel_depth(self.in_features, self.dtype)
        size = _round_up(self.out_features // halves, PANEL) * self.depth
        self.panels = torch.empty(count, halves, size, dtype=self.dtype, device=like.values.device)
        self.nbytes = self.panels.nbytes
        if not like.values.is_meta:
            kernels.prefer_huge_pages(self.panels.data_ptr(), self.nbytes)

    def put(self, kernels: Kernels, index: int, weight: CanonicalWeight) -> None:
        """Copy a weight to its place."""
        if weight.values.is_meta:
            return
        values = weight.values if isinstance(weight, DenseWeight) else dequantize(weight)
        for half, place in zip(values.chunk(self.panels.shape[1]), self.panels[index], strict=True):
            kernels.pack_linear(
                dtype=DTYPES[self.dtype],
                values=half.contiguous(),
                outputs=len(half),
                inputs=self.in_features,
                packed=place,
            )

    def fields(self, prefix: str = "") -> dict[str, Any]:
        """Those of a kernel's weight, whose names begin with prefix."""
        fields = {"weight": self.panels, "weight_type": DTYPES[self.dtype], "inputs": self.in_features}
        return {prefix + name: value for name, value in fields.items()}


class QuantizedWeight:
    """Weights of 4 or 8 bits in panels of 32 outputs, the layout of native/kernels/codes.h; several like PanelWeight.

    codes: uint8 `[count, halves, bytes]`. scales: `[count, halves, panels, groups, 32]`. shifts: int8 like scales, the
    zero points minus the middle of the codes, or None where all of them are the middle. order: int32 `[count, inputs]`,
    that of IntWeight, or None. inputs: those of a packed row.
    """

    def __init__(
        self, kernels: Kernels, like: IntWeight | Float8Weight, group: int, count: int = 1, halves: int = 1
    ) -> None:
        self.group = group
        self.out_features, self.in_features = canonical_shape(like)
        bits: int = like.bits if isinstance(like, IntWeight) else 8
        self.type = CODES[like.bits if isinstance(like, IntWeight) else "float8"]
        self.activations = ACTIVATIONS[like.activations if isinstance(like, IntWeight) else "float"]
        self.inputs = like.values.shape[1] * 8 // bits
        rows, device = _round_up(self.out_features // halves, PANEL), like.values.device
        size = rows * _round_up(self.inputs, 32) * bits // 8
        self.codes = torch.empty(count, halves, size, dtype=torch.uint8, device=device)
        shape = count, halves, rows // PANEL, -(-self.inputs // group), PANEL
        self.scales = torch.zeros(shape, dtype=like.scales.dtype, device=device)
        self.shifts: Tensor | None = None
        self.order: Tensor | None = None
        if isinstance(like, IntWeight) and like.order is not None:
            self.order = torch.empty(count, self.inputs, dtype=torch.int32, device=device)
        if not like.values.is_meta:
            kernels.prefer_huge_pages(self.codes.data_ptr(), self.codes.nbytes)

    def put(self, kernels: Kernels, index: int, weight: IntWeight | Float8Weight) -> None:
        """Copy a weight to its place."""
        if weight.scales.dtype != self.scales.dtype:
            self.scales = self.scales.float()
        self._spread(weight.scales, weight.group_size, self.scales[index])
        if isinstance(weight, IntWeight):
            middle = 1 << (weight.bits - 1)
            if self.shifts is None and not bool((weight.zeros == middle).all()):
                self.shifts = torch.zeros(self.scales.shape, dtype=torch.int8, device=self.scales.device)
            if self.shifts is not None:
                self._spread((weight.zeros.short() - middle).char(), weight.group_size, self.shifts[index])
            if self.order is not None and weight.order is not None:
                self.order[index].copy_(weight.order)
        self._count_bytes()
        if weight.values.is_meta:
            return
        halves = weight.values.chunk(self.codes.shape[1])
        for half, codes, scales in zip(halves, self.codes[index], self.scales[index], strict=True):
            kernels.pack_codes(
                weight_type=self.type,
                values=half.contiguous(),
                outputs=len(half),
                inputs=self.inputs,
                packed=codes,
                group=self.group,
                scales=scales,
            )

    def fields(self, prefix: str = "") -> dict[str, Any]:
        """Those of a kernel's weight, whose names begin with prefix."""
        fields = {
            "weight": self.codes,
            "weight_type": self.type,
            "activations": self.activations,
            "inputs": self.inputs,
            "order": self.order,
            "group": self.group,
            "scales": self.scales,
            "scales_dtype": DTYPES[self.scales.dtype],
            "shifts": self.shifts,
        }
        return {prefix + name: value for name, value in fields.items()}

    @property
    def rounds_rows(self) -> bool:
        """Whether rows are rounded to int8 before they meet it."""
        return self.activations != ACTIVATIONS["float"]

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
        weight._count_bytes()
        return weight

    def _count_bytes(self) -> None:
        self.nbytes = sum(getattr(self, name).nbytes for name in _TENSORS if getattr(self, name) is not None)

    def _spread(self, values: Tensor, group_size: int, to: Tensor) -> None:
        """What a canonical weight has for each output and group, for each of ours `[halves, panels, groups, 32]`."""
        at = torch.arange(to.shape[2]) * self.group // group_size
        for half, place in zip(values[:, at].chunk(len(to)), to, strict=True):
            padded = values.new_zeros(len(place) * PANEL, len(at))
            padded[: len(half)] = half
            place.copy_(padded.unflatten(0, (-1, PANEL)).transpose(1, 2))


def pack(kernels: Kernels, weights: Sequence[CanonicalWeight], halves: int = 1) -> PanelWeight | QuantizedWeight:
    """Copy weights that are alike into the kernels' layout. Raises ValueError for others.

    The quantized kernels take groups of a multiple of 32 inputs, or one group of any size; weights with others become
    dense ones of float32: exact, and 4 bytes an input.
    """
    like, count = weights[0], len(weights)
    group = None if isinstance(like, DenseWeight) else span_of(like)
    if isinstance(like, IntWeight) and like.activations != "float":
        check_span(like)
    packed: Any
    if isinstance(like, DenseWeight) or group is None:
        packed = PanelWeight(kernels, like, count, halves)
    else:
        packed = QuantizedWeight(kernels, like, group, count, halves)
    for index, weight in enumerate(weights):
        if _kind(weight) != _kind(like):
            raise ValueError(f"weights that are packed together must be alike, got {_kind(like)} and {_kind(weight)}")
        packed.put(kernels, index, weight)
    return packed


def _kind(weight: CanonicalWeight) -> tuple[object, ...]:
    """What weights have in common that are packed as one."""
    kind = type(weight).__name__, weight.values.dtype, tuple(weight.values.shape)
    if isinstance(weight, DenseWeight):
        return kind
    grouped = (*kind, weight.group_size, tuple(weight.scales.shape))
    if isinstance(weight, Float8Weight):
        return grouped
    return *grouped, weight.bits, weight.order is not None, weight.activations


def panel_depth(inputs: int, dtype: torch.dtype) -> int:
    """The inputs of a panel of a dense weight, padding included."""
    return _round_up(inputs, 32) if dtype == torch.bfloat16 else inputs


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
