"""Canonical weights: parts put together, groups cut by a shard aligned again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, TypeVar

import torch
from torch import Tensor

from device.interface import CanonicalWeight, DenseWeight, Float8Weight, IntWeight
from device.reference import dequantize
from sophserve.errors import CheckpointError

# Devices compute with groups of a multiple of so many inputs.
_GROUP_UNIT = 32
_BY_OUTPUT = ("values", "scales", "zeros")

Grouped = TypeVar("Grouped", IntWeight, Float8Weight)


def stack_tensors(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A copy with the parts one over the other, converted on the way so that no second one is made."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    if parts[0].is_meta:
        return torch.empty(shape, dtype=dtype, device="meta")
    # Pages of its own: among packed weights on the heap, freed copies would leave holes of a tenth of the model.
    pages = mmap(-1, prod(shape) * dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    stacked = torch.frombuffer(pages, dtype=dtype).view(shape)
    for part, place in zip(parts, stacked.split([len(part) for part in parts]), strict=True):
        place.copy_(part)
    return stacked


def stack_weights(weights: Sequence[CanonicalWeight], dtype: torch.dtype) -> CanonicalWeight:
    """One weight with the outputs of all, in order. Parts of different kinds become a dense weight of dtype."""
    first = weights[0]
    if len(weights) == 1 and not isinstance(first, DenseWeight):
        return first
    ints = [weight for weight in weights if isinstance(weight, IntWeight)]
    floats = [weight for weight in weights if isinstance(weight, Float8Weight)]
    if len(floats) == len(weights):
        return _stack_groups(floats)
    if len(ints) == len(weights) and all(w.bits == ints[0].bits and _same_order(w, ints[0]) for w in ints):
        return _stack_groups(ints)
    return DenseWeight(stack_tensors([_values(weight) for weight in weights], dtype))


def make_alike(weights: Sequence[CanonicalWeight], dtype: torch.dtype) -> Sequence[CanonicalWeight]:
    """Weights of one shape as an ExpertsWeight holds them: of one class, number of bits, group size and count of packed
    inputs. Those that cannot be become dense weights of dtype."""
    floats = [weight for weight in weights if isinstance(weight, Float8Weight)]
    if len(floats) == len(weights):
        return _of_one_group_size(floats)
    ints = [weight for weight in weights if isinstance(weight, IntWeight)]
    if len(ints) == len(weights) and len({(each.bits, each.values.shape) for each in ints}) == 1:
        ordered = any(each.order is not None for each in ints)
        # Groups of an order cannot be cut: where they end, another may have gaps.
        if not ordered or len({each.group_size for each in ints}) == 1:
            return _of_one_group_size([_in_order(each) for each in ints] if ordered else ints)
    return [DenseWeight(stack_tensors([_values(weight)], dtype)) for weight in weights]


def pad_rows(weight: CanonicalWeight, count: int) -> CanonicalWeight:
    """The weight with `count` more outputs, all of which are 0."""

    def pad(tensor: Tensor) -> Tensor:
        zeros = tensor.new_zeros(count, *tensor.shape[1:])
        return torch.cat([tensor.view(torch.uint8), zeros.view(torch.uint8)]).view(tensor.dtype)

    if not count:
        return weight
    by_output: dict[str, Any] = {name: pad(getattr(weight, name)) for name in _BY_OUTPUT if hasattr(weight, name)}
    return replace(weight, **by_output)


def int_weight(codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor, bits: int) -> IntWeight:
    """A weight whose inputs belong to groups in any way.

    codes: uint8 `[outputs, inputs]`. scales, zeros: `[outputs, groups]`. groups: int64 `[inputs]`. Inputs of one group
    are put side by side; where groups are of different sizes, each is cut into pieces of 32 inputs, the last with gaps.
    """
    inputs = len(groups)
    order = groups.argsort(stable=True)
    members, counts = groups[order].unique_consecutive(return_counts=True)
    in_place = bool((order == torch.arange(inputs)).all())
    size = int(counts[0])
    starts = counts.cumsum(0) - counts
    if not bool((counts[:-1] == size).all()) or int(counts[-1]) > size:
        # As a shard begins and ends within groups: smaller groups that divide them all may do.
        size = gcd(*starts[1:].tolist())
        if not in_place or size % _GROUP_UNIT:
            return _with_gaps(codes, scales, zeros, order, members, counts, bits)
        members = groups[order][torch.arange(0, inputs, size)]
    ordered = codes if in_place else codes[:, order]
    return IntWeight(
        pack_bits(ordered, bits),
        scales[:, members],
        zeros[:, members],
        size,
        4 if bits == 4 else 8,
        None if in_place else order.int(),
    )


def float8_weight(values: Tensor, scales: Tensor, groups: Tensor) -> Float8Weight:
    """A weight whose inputs belong to consecutive groups.

    values: float8 `[outputs, inputs]`. scales: `[outputs, groups]`. groups: int64 `[inputs]`.
    """
    members, counts = groups.unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts)[1:].tolist()
    size = gcd(*starts) if starts else len(groups)
    members = groups[torch.arange(0, len(groups), size)]
    return Float8Weight(values.contiguous(), scales[:, members].float(), size)


def even_groups(inputs: int, groups: int, group_size: int) -> Tensor:
    """int64 `[inputs]`: the group of each input where they come in order.

    group_size: what the checkpoint says of all its layers. A layer with another number of groups has even ones.
    """
    if group_size <= 0 or -(-inputs // group_size) != groups:
        group_size = -(-inputs // groups)
    return torch.arange(inputs) // group_size


def stored_groups(name: str, stored: Tensor, in_order: Tensor, count: int) -> Tensor:
    """int64 `[inputs]`: the group of each input as a tensor of that name has it, of which there are `count`. One that
    is all -1 says that they come in order. Raises CheckpointError."""
    groups = stored.long()
    if bool((groups == -1).all()):
        return in_order
    if not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise CheckpointError(f"{name} names groups beyond the {count} that there are")
    return groups


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `[outputs, inputs]` as IntWeight's values."""
    if bits == 8:
        return codes.contiguous()
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4


def _with_gaps(
    codes: Tensor, scales: Tensor, zeros: Tensor, order: Tensor, members: Tensor, counts: Tensor, bits: int
) -> IntWeight:
    pieces = -(-counts // _GROUP_UNIT)
    channels = torch.full((int(pieces.sum()) * _GROUP_UNIT,), -1)
    start, place = 0, 0
    for count, piece in zip(counts.tolist(), pieces.tolist(), strict=True):
        channels[place : place + count] = order[start : start + count]
        start, place = start + count, place + piece * _GROUP_UNIT
    spread = members.repeat_interleave(pieces)
    return IntWeight(
        pack_bits(codes[:, channels.clamp(min=0)], bits),
        scales[:, spread],
        zeros[:, spread],
        _GROUP_UNIT,
        4 if bits == 4 else 8,
        channels.int(),
    )


def _same_order(left: IntWeight, right: IntWeight) -> bool:
    if left.order is None or right.order is None:
        return left.order is right.order
    return left.group_size == right.group_size and torch.equal(left.order, right.order)


def _values(weight: CanonicalWeight) -> Tensor:
    return weight.values if isinstance(weight, DenseWeight) else dequantize(weight)


def _in_order(weight: IntWeight) -> IntWeight:
    """The weight with an order, even if it is that of the channels."""
    inputs = weight.values.shape[1] * 8 // weight.bits
    return weight if weight.order is not None else replace(weight, order=torch.arange(inputs, dtype=torch.int32))


def _of_one_group_size(weights: Sequence[Grouped]) -> list[Grouped]:
    """Weights with as many inputs, their groups cut into pieces of one size, their scales of one dtype."""
    inputs = weights[0].values.shape[1] * (8 // weights[0].bits if isinstance(weights[0], IntWeight) else 1)
    size = gcd(*(min(weight.group_size, inputs) for weight in weights))
    dtypes = {weight.scales.dtype for weight in weights}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    at = torch.arange(0, inputs, size)

    def cut(weight: Grouped) -> Grouped:
        pieces = slice(None) if weight.group_size == size else at // weight.group_size
        groups: dict[str, Any] = {"scales": weight.scales[:, pieces].to(dtype)}
        if isinstance(weight, IntWeight):
            groups["zeros"] = weight.zeros[:, pieces]
        return replace(weight, group_size=size, **groups)

    return [cut(weight) for weight in weights]


def _stack_groups(weights: Sequence[Grouped]) -> Grouped:
    alike = _of_one_group_size(weights)
    parts: dict[str, Any] = {
        name: torch.cat([getattr(weight, name) for weight in alike])
        for name in ("scales", "zeros")
        if hasattr(alike[0], name)
    }
    # torch cannot put float8 together.
    values = torch.cat([weight.values.view(torch.uint8) for weight in alike]).view(alike[0].values.dtype)
    return replace(alike[0], values=values, **parts)
