"""Canonical weights: parts put together, groups cut by a shard aligned again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import gcd, prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from device.int8_products import span_of
from device.interface import CanonicalWeight, DenseWeight, Float8Weight, IntWeight
from device.reference import dequantize
from sophserve.errors import CheckpointError

log = logging.getLogger(__name__)

# Devices compute with groups of a multiple of so many inputs.
_GROUP_UNIT = 32
_BY_OUTPUT = ("values", "scales", "zeros")

Grouped = TypeVar("Grouped", IntWeight, Float8Weight)


class MadeInTurn(Sequence[CanonicalWeight]):
    """Weights that are made when they are asked for, so that one of many is in memory at a time."""

    def __init__(self, make: Callable[[int], CanonicalWeight], count: int) -> None:
        self._make = make
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        place = self._places[index]
        return (
            MadeInTurn(lambda at: self._make(place[at]), len(place)) if isinstance(index, slice) else self._make(place)
        )


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
    if len(weights) == 1 and not isinstance(weights[0], DenseWeight):
        return weights[0]
    floats, ints = _all_quantized(weights)
    if floats:
        return _stack_groups(_of_one_group_size(floats))
    if ints and all(_same_order(each, ints[0]) for each in ints):
        return _stack_groups(_of_one_group_size(ints))
    return DenseWeight(stack_tensors([_values(weight) for weight in weights], dtype))


def make_alike(weights: Sequence[CanonicalWeight], dtype: torch.dtype) -> Sequence[CanonicalWeight]:
    """Weights of one shape as an ExpertsWeight holds them: of one class, number of bits, group size and count of packed
    inputs. Those that cannot be become dense weights of dtype."""
    floats, ints = _all_quantized(weights)
    if floats:
        return _of_one_group_size(floats)
    if ints:
        return _of_one_group_size(ints)
    if not all(isinstance(weight, DenseWeight) for weight in weights):
        _tell_of_mixture(dtype)
    return [DenseWeight(stack_tensors([_values(weight)], dtype)) for weight in weights]


def with_int8_activations(weight: CanonicalWeight) -> CanonicalWeight:
    """A weight of whole numbers that takes activations rounded to int8, if its groups allow it; any other as it is."""
    if isinstance(weight, IntWeight) and weight.activations == "float" and span_of(weight) is not None:
        return replace(weight, activations="blocks")
    return weight


def are_alike(weights: Sequence[CanonicalWeight]) -> bool:
    """Whether weights are of one form already, so that each can be taken by itself. Dense ones need no common dtype."""

    def form(weight: CanonicalWeight) -> tuple[Any, ...]:
        if isinstance(weight, DenseWeight):
            return (DenseWeight,)
        shapes = weight.values.shape[1], weight.scales.shape[1]
        of_ints = (weight.bits, weight.order is None, weight.activations) if isinstance(weight, IntWeight) else ()
        return (type(weight), weight.group_size, weight.scales.dtype, *shapes, *of_ints)

    return len({form(weight) for weight in weights}) == 1


def same_order(left: CanonicalWeight, right: CanonicalWeight) -> bool:
    """Whether weights of one form have their inputs in the same order, so that they can be stacked as they are."""
    return not (isinstance(left, IntWeight) and isinstance(right, IntWeight)) or _same_order(left, right)


def pad_rows(weight: CanonicalWeight, count: int) -> CanonicalWeight:
    """The weight with `count` more outputs, all of which are 0."""

    def longer(tensor: Tensor, octet: int = 0) -> Tensor:
        more = tensor.new_zeros(count, *tensor.shape[1:]).view(torch.uint8) + octet
        return torch.cat([tensor.view(torch.uint8), more]).view(tensor.dtype)

    if not count:
        return weight
    by_output: dict[str, Any] = {name: longer(getattr(weight, name)) for name in _BY_OUTPUT if hasattr(weight, name)}
    if isinstance(weight, IntWeight):
        # In the middle, as devices need not keep those that all are.
        by_output["zeros"] = longer(weight.zeros, 1 << (weight.bits - 1))
    return replace(weight, **by_output)


def take_rows(weight: CanonicalWeight, rows: Tensor) -> CanonicalWeight:
    """The weight with these of its outputs, in this order; rows int64 `[outputs]`."""
    chosen: dict[str, Any] = {
        name: getattr(weight, name).view(torch.uint8)[rows].view(getattr(weight, name).dtype)
        for name in _BY_OUTPUT
        if hasattr(weight, name)
    }
    return replace(weight, **chosen)


def readable_rows(weight: CanonicalWeight, dtype: torch.dtype) -> CanonicalWeight:
    """The weight as an embedding, in dtype where it has groups that devices would compute with as float32."""
    if isinstance(weight, DenseWeight) or weight.scales.shape[1] == 1 or weight.group_size % _GROUP_UNIT == 0:
        return weight
    return DenseWeight(dequantize(weight).to(dtype))


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
    return torch.arange(inputs) // group_length(inputs, groups, group_size)


def group_length(inputs: int, groups: int, group_size: int) -> int:
    """The inputs of a group of even_groups."""
    fits = group_size > 0 and -(-inputs // group_size) == groups
    return group_size if fits else -(-inputs // groups)


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
        codes = pad(codes, (0, 1))
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
    return torch.equal(left.order, right.order)


def _values(weight: CanonicalWeight) -> Tensor:
    return weight.values if isinstance(weight, DenseWeight) else dequantize(weight)


@cache
def _tell_of_mixture(dtype: torch.dtype) -> None:
    log.warning(
        "the experts of a layer are not all quantized in the same way: those of such layers take the memory of %s",
        str(dtype).removeprefix("torch."),
    )


def _all_quantized(weights: Sequence[CanonicalWeight]) -> tuple[list[Float8Weight], list[IntWeight]]:
    """The weights if all are of one class and not dense, the whole numbers of equally many bits, and ordered, if any
    of them is. Those that take activations in more than one way are none."""
    floats = [weight for weight in weights if isinstance(weight, Float8Weight)]
    ints = [weight for weight in weights if isinstance(weight, IntWeight)]
    if len(ints) != len(weights) or len({weight.activations for weight in ints}) > 1:
        return floats if len(floats) == len(weights) else [], []
    if len({weight.bits for weight in ints}) > 1:
        ints = [_widened(weight) for weight in ints]
    ordered = any(weight.order is not None for weight in ints)
    return [], [_in_order(weight) for weight in ints] if ordered else ints


def _packed_inputs(weight: IntWeight | Float8Weight) -> int:
    return weight.values.shape[1] * (8 // weight.bits if isinstance(weight, IntWeight) else 1)


def _widened(weight: IntWeight) -> IntWeight:
    """The same numbers in 8 bits."""
    if weight.bits == 8:
        return weight
    return replace(weight, values=torch.stack([weight.values & 15, weight.values >> 4], dim=-1).flatten(1), bits=8)


def _in_order(weight: IntWeight) -> IntWeight:
    """The weight with an order, even if it is that of the channels."""
    order = torch.arange(_packed_inputs(weight), dtype=torch.int32) if weight.order is None else weight.order
    return replace(weight, order=order)


def _of_one_group_size(weights: Sequence[Grouped]) -> list[Grouped]:
    """The weights with their groups cut into pieces of one size, their scales of one dtype, and as many packed inputs;
    what an order lacks of these are gaps at the end."""
    inputs = max(_packed_inputs(weight) for weight in weights)
    # What has one group for all its inputs can be cut anywhere.
    sizes = [weight.group_size for weight in weights if weight.scales.shape[1] > 1]
    size = gcd(*sizes) if sizes else inputs
    dtypes = {weight.scales.dtype for weight in weights}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    starts = torch.arange(0, inputs, size)

    def cut(weight: Grouped) -> Grouped:
        # Gaps are of the last group, and add nothing whatever that is.
        group_of = (starts // weight.group_size).clamp(max=weight.scales.shape[1] - 1)
        parts: dict[str, Any] = {"scales": weight.scales[:, group_of].to(dtype)}
        if isinstance(weight, IntWeight):
            parts["zeros"] = weight.zeros[:, group_of]
            missing = inputs - _packed_inputs(weight)
            if weight.order is not None and missing:
                parts["values"] = pad(weight.values, (0, missing * weight.bits // 8))
                parts["order"] = pad(weight.order, (0, missing), value=-1)
        return replace(weight, group_size=size, **parts)

    return [cut(weight) for weight in weights]


def _stack_groups(weights: Sequence[Grouped]) -> Grouped:
    """Weights as _of_one_group_size gives them, one over the other."""
    parts: dict[str, Any] = {
        name: torch.cat([getattr(weight, name) for weight in weights])
        for name in ("scales", "zeros")
        if hasattr(weights[0], name)
    }
    # torch cannot put float8 together.
    values = torch.cat([weight.values.view(torch.uint8) for weight in weights]).view(weights[0].values.dtype)
    return replace(weights[0], values=values, **parts)
