"""Products of rows rounded to int8 with weights of whole numbers: their definition, in plain torch.

Rows are rounded in blocks of 32 inputs of the packed order. What is added up within a block are whole numbers, and
exact; beyond it every multiplication and every addition of float32 is rounded by itself, in one order. So every device
and instruction set computes the same bits, whatever is computed beside a row.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from device.weight_forms import Float8Weight, IntWeight

BLOCK = 32
"""Inputs of a block."""

_SPANS = (128, 96, 64, 32)


def span_of(weight: IntWeight | Float8Weight) -> int | None:
    """Inputs, a multiple of 32, that are added up before they meet their group's scale; None if no group is such.

    The largest part of a group up to 128. A group that is the whole row ends in a span that is shorter.
    """
    if weight.scales.shape[1] == 1:
        return _SPANS[0]
    return next((span for span in _SPANS if weight.group_size % span == 0), None)


def check_span(weight: IntWeight) -> int:
    """That of a weight that takes rows in int8. Raises ValueError for one that has none."""
    if (span := span_of(weight)) is None:
        raise ValueError(
            f"a weight with groups of {weight.group_size} inputs cannot be multiplied by int8 activations; groups must "
            f"be a multiple of {BLOCK} inputs, or a whole row"
        )
    return span


def int_codes(weight: IntWeight) -> Tensor:
    """uint8 `[out_features, inputs]`, an input's code in each."""
    if weight.bits == 8:
        return weight.values
    return torch.stack([weight.values & 15, weight.values >> 4], dim=-1).flatten(1)


def round_rows(x: Tensor, activations: Literal["float", "blocks", "rows"]) -> tuple[Tensor, Tensor]:
    """Rows `[rows, inputs]` as whole numbers: their codes `[blocks, rows, 32]` and scales `[blocks, rows, 1]`.

    All float32. blocks: each block has its largest magnitude / 127 as its scale. rows: all blocks of a row have the
    row's largest / 127.5, as compressed-tensors rounds it. A code is the value / scale, rounded to the nearest, of
    two to the even one; 0 where the scale is 0, and where it is NaN because of a value that is not finite.
    """
    blocks = F.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK)).transpose(0, 1)
    largest = blocks.abs().amax(2, keepdim=True)
    if activations == "rows":
        largest, steps, least = largest.amax(0, keepdim=True).expand_as(largest), 127.5, -128
    else:
        steps, least = 127, -127
    scales = torch.where(largest.isfinite(), largest / steps, torch.nan)
    return torch.where(scales > 0, blocks / scales, 0).round().clamp(least, 127), scales


def int8_product(x: Tensor, weight: IntWeight) -> Tensor:
    """Rows `[rows, channels]` times a weight whose activations are not float: `[rows, out_features]`, both float32.

    A weight's code counts from 0 with 4 bits and from 128 with 8. A span's sum begins with the zero point times what
    the row's codes mean in all, negative, to which each block's product is added; times the span's scale it is added to
    the output's sum.
    """
    span = check_span(weight)
    if weight.order is not None:
        x = torch.where(weight.order >= 0, x[:, weight.order.clamp(min=0).long()], 0)
    codes, scales = round_rows(x, weight.activations)
    base = 0 if weight.bits == 4 else 128
    of_weight = F.pad(int_codes(weight).float() - base, (0, -weight.values.shape[1] * 8 // weight.bits % BLOCK))
    # Whole numbers below 2^24: float32 adds them exactly.
    dots = codes @ of_weight.unflatten(1, (-1, BLOCK)).permute(1, 2, 0)
    meant = scales * codes.sum(2, keepdim=True)
    total = torch.zeros(len(x), len(weight.values))
    for first in range(0, len(dots), span // BLOCK):
        blocks = range(first, min(first + span // BLOCK, len(dots)))
        group = first * BLOCK // weight.group_size
        of_span = meant[first]
        for block in blocks[1:]:
            of_span = of_span + meant[block]
        partial = (weight.zeros[:, group].float() - base) * -of_span
        for block in blocks:
            partial = partial + scales[block] * dots[block]
        total = total + weight.scales[:, group].float() * partial
    return total
