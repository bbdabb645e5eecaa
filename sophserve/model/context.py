"""What every building block of a model is made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from device.collectives.interface import Communicator
from device.interface import Device


@dataclass(frozen=True)
class ModelContext:
    """Where a model lives and how it computes.

    communicator: the tensor-parallel group; its rank says which shard this process holds.
    dtype: of weights and activations: float32, float16 or bfloat16.
    max_positions: the longest sequence, in tokens, that will be served (the length of RoPE tables).
    beat: called by every attention layer, as a sign of life.
    activation_bits: 8 where activations are rounded to int8 before they meet weights of whole numbers.
    head_bits: 8 rounds the weights of a head that is plain on disk, 16 leaves them as they are.
    mtp: whether to make the layer that predicts a further token, which the files must hold.
    layers: those of this process's stage, of a model whose layers are split over several; None for all.
    """

    device: Device
    communicator: Communicator
    dtype: torch.dtype
    max_positions: int
    beat: Callable[[], None] = lambda: None
    activation_bits: Literal[8, 16] = 16
    head_bits: Literal[8, 16] = 16
    mtp: bool = False
    layers: range | None = None


def resolve_activation_bits(asked: Literal["auto", 8, 16], dtype: torch.dtype, device: Device) -> Literal[8, 16]:
    """Those of the option; with "auto" 8 where that is faster on a device and dtype gives no exact products."""
    if asked == "auto":
        return 8 if dtype != torch.float32 and device.fast_in_int8 else 16
    return asked
