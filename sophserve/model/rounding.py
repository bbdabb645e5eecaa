"""Rounding a plain head, and the embedding that it is tied to, to 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from device.interface import IntWeight

GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale: the first that divides them, or all."""

_MIDDLE, _LARGEST = 128, 127
# Weights that are rounded together: so many that they stay in a cache.
_ELEMENTS = 2**17


def int8_group_size(inputs: int) -> int | None:
    """The size of round_to_int8's groups; None where a group is a whole row."""
    return next((size for size in GROUP_SIZES if inputs % size == 0), None)


def round_to_int8(values: Tensor) -> IntWeight:
    """Codes around 128 for `[outputs, inputs]`, rounded to nearest, and scales of the values' dtype: of each group the
    largest magnitude / 127."""
    inputs = values.shape[1]
    size = int8_group_size(inputs) or inputs
    rows = len(values) if values.is_meta else max(1, _ELEMENTS // inputs)
    pieces = [_round_rows(part.unflatten(1, (-1, size))) for part in values.split(rows)]
    codes, scales = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return IntWeight(codes, scales, torch.full(scales.shape, _MIDDLE, dtype=torch.uint8), size, 8)


def _round_rows(groups: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes `[outputs, inputs]` and scales `[outputs, groups]` of groups `[outputs, groups, size]`."""
    exact = groups.float()
    # Rounded as they are stored, so that the codes are the nearest of what is served.
    scales = (exact.abs().amax(-1, keepdim=True) / _LARGEST).to(groups.dtype)
    steps = exact / torch.where(scales > 0, scales.float(), torch.inf)
    codes = steps.round_().clamp_(-_LARGEST, _LARGEST).add_(_MIDDLE)
    return codes.to(torch.uint8).flatten(1), scales[..., 0]
