"""What every building block of a model is made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    device: Device
    communicator: Communicator
    dtype: torch.dtype
    max_positions: int
    beat: Callable[[], None] = lambda: None
