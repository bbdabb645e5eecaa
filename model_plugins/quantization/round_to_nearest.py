"""Quantizes plain weights: whole numbers of 4 bits in groups, or float8 in blocks, rounded to nearest."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from device.interface import CanonicalWeight, Float8Weight, IntWeight
from device.reference import dequantize
from sophserve.model.canonical import pack_bits
from sophserve.model.quantization import DenseFormat, Scheme, WeightFormat, WeightPart, is_dense, is_rounded
from sophserve.model.weights import StoredTensor

log = logging.getLogger(__name__)
Rounding = Callable[[Tensor], IntWeight | Float8Weight]

GROUP_SIZE = BLOCK = 128
MIDDLE = 8
# Shares of a group's largest magnitude that are tried as its range.
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_LARGEST_FLOAT8 = 448.0
_EXPERT = re.compile(r"(?<=\.experts)\.\d+")
# Weights that are rounded together: so many that they stay in a cache.
_ELEMENTS = 2**17


def group_size_for(inputs: Iterable[int]) -> int | None:
    """The largest usual group size that divides layers of so many inputs; None where there is none."""
    sizes = list(inputs)
    return next((size for size in (GROUP_SIZE, 64, 32) if all(each % size == 0 for each in sizes)), None)


def round_to_int4(values: Tensor, group_size: int | None = None, dtype: torch.dtype = torch.float16) -> IntWeight:
    """Codes around 8 and scales of dtype for `[outputs, inputs]`.

    Of some ranges for each group the one with the smallest squared error is taken.
    """
    size = group_size or group_size_for([values.shape[1]]) or values.shape[1]
    rows = len(values) if values.is_meta else max(1, _ELEMENTS // values.shape[1])
    pieces = [_round_rows(part.float().unflatten(1, (-1, size)), dtype) for part in values.split(rows)]
    codes, scales = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return IntWeight(pack_bits(codes, 4), scales, torch.full(scales.shape, MIDDLE, dtype=torch.uint8), size)


def _round_rows(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """uint8 codes `[outputs, inputs]` and scales `[outputs, groups]` of groups `[outputs, groups, size]`."""
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    best_error = torch.full_like(largest, torch.inf)
    best_scales = torch.ones_like(largest)
    for clip in _CLIPS:
        # Rounded as they are stored, so that the error is that of what is served.
        scales = (largest * clip / (MIDDLE - 0.5)).to(dtype).float().clamp(min=6e-8)
        rounded = (groups / scales).round_().clamp_(-MIDDLE, MIDDLE - 1).mul_(scales)
        error = rounded.sub_(groups).square_().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scales = torch.where(better, scales, best_scales)
    codes = (groups / best_scales).round_().clamp_(-MIDDLE, MIDDLE - 1).add_(MIDDLE)
    return codes.to(torch.uint8).flatten(1), best_scales[..., 0].to(dtype)


def round_to_float8(values: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3 values and the float32 scales of blocks of 128 x 128, the last of which may be cut."""
    outputs, inputs = values.shape
    rows, columns = -(-outputs // BLOCK), -(-inputs // BLOCK)
    padded = values.new_zeros(rows * BLOCK, columns * BLOCK, dtype=torch.float32)
    padded[:outputs, :inputs] = values
    blocks = padded.unflatten(0, (rows, BLOCK)).unflatten(2, (columns, BLOCK))
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / _LARGEST_FLOAT8
    rounded = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    return rounded.flatten(2).flatten(0, 1)[:outputs, :inputs].contiguous(), scales


def as_float8(values: Tensor) -> Float8Weight:
    """What round_to_float8 makes of `[outputs, inputs]`, with scales for each output."""
    rounded, scales = round_to_float8(values)
    return Float8Weight(rounded, scales.repeat_interleave(BLOCK, dim=0)[: len(values)], BLOCK)


class RoundToNearest(Scheme):
    """Quantizes plain layers as they are loaded, but for those that `is_rounded` leaves out."""

    def __init__(self, rounded: Rounding) -> None:
        self._rounded = rounded
        self._largest_errors: dict[str, float] = {}

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        if is_dense(stored) and is_rounded(name):
            return RoundedFormat(name, self._rounded, self._largest_errors)
        return DenseFormat()


class RoundedFormat(DenseFormat):
    """A plain weight on disk, rounded from there on.

    largest_errors: those that were logged. A layer may have hundreds of experts: the first is logged, and those that
    are a tenth worse than any before.
    """

    def __init__(self, name: str, rounded: Rounding, largest_errors: dict[str, float]) -> None:
        self._name = name
        self._rounded = rounded
        self._alike = _EXPERT.sub("", name)
        self._largest_errors = largest_errors

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        values = tensors["weight"]
        weight = self._rounded(values)
        if not values.is_meta:
            exact = values.float()
            error = float((dequantize(weight) - exact).norm() / exact.norm().clamp(min=1e-12))
            share = (weight.values.nbytes + weight.scales.nbytes) / values.nbytes
            if error <= 1.1 * self._largest_errors.get(self._alike, -1.0):
                return weight
            self._largest_errors[self._alike] = error
            log.info("%s: %.1f%% of its memory, relative error %.4f", self._name, 100 * share, error)
        return weight
