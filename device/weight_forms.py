"""Weights as a device receives them, and what it makes of them. Part of `device.interface`, where others find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseWeight:
    """A plain weight, `[out_features, in_features]` in the run's dtype."""

    values: Tensor


@dataclass(frozen=True)
class IntWeight:
    """Whole numbers of 4 or 8 bits in groups along the input: `(code - zero) * scale`.

    values: uint8, for 4 bits `[out_features, inputs / 2]`, the even input in the low half of a byte, for 8 bits
        `[out_features, inputs]`.
    scales: float16, bfloat16 or float32 `[out_features, groups]`; zeros: uint8 `[out_features, groups]`.
    order: int32 `[inputs]` or None: the channel of x that each input multiplies, every channel once; -1 for none. None
        stands for all channels as they come.
    activations: how a row meets the weight, which is part of what the product is (device/int8_products.py). float: as
        it is. blocks: rounded to int8, 32 inputs at a time. rows: rounded to int8, all of it with one scale.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor
    group_size: int
    bits: Literal[4, 8] = 4
    order: Tensor | None = None
    activations: Literal["float", "blocks", "rows"] = "float"


@dataclass(frozen=True)
class Float8Weight:
    """float8_e4m3fn in groups along the input: `value * scale`.

    values: float8_e4m3fn `[out_features, in_features]`. scales: float32 `[out_features, groups]`.
    """

    values: Tensor
    scales: Tensor
    group_size: int = 128


CanonicalWeight = DenseWeight | IntWeight | Float8Weight


@dataclass(frozen=True)
class ExpertsWeight:
    """The gated MLPs of all experts of a layer.

    gate_up: `[2 * intermediate, hidden]` each, gate over up. down: `[hidden, intermediate]` each. The weights of either
    are of one class, group size, bits and number of inputs, and all or none have an order, each its own.
    """

    gate_up: Sequence[CanonicalWeight]
    down: Sequence[CanonicalWeight]


@dataclass(frozen=True)
class LatentUpWeight:
    """What makes keys and values of latents (https://arxiv.org/abs/2405.04434): for each head W_UK over W_UV.

    weight: `[heads * (nope_dim + v_dim), latent_dim]`. dtype: that of activations, for devices that dequantize it.
    """

    weight: CanonicalWeight
    heads: int
    nope_dim: int
    dtype: torch.dtype


@runtime_checkable
class PackedWeight(Protocol):
    """A weight in the device's own layout. Only the device that packed it can read it."""

    out_features: int
    in_features: int
    nbytes: int


@runtime_checkable
class PackedExperts(PackedWeight, Protocol):
    """A packed ExpertsWeight; in_features and out_features are the hidden size."""

    experts: int
    intermediate: int


@runtime_checkable
class PackedLatentUp(PackedWeight, Protocol):
    """A packed LatentUpWeight; in_features is latent_dim, out_features `heads * (nope_dim + v_dim)`."""

    heads: int
    nope_dim: int
    v_dim: int
