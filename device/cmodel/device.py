"""CmodelDevice: the host CPU as a device."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from device.cmodel.memory import host_memory
from device.cmodel.ops import TorchOps, TorchWeight
from device.interface import (
    CanonicalWeight,
    DenseWeight,
    KVCache,
    Ops,
    OutOfDeviceMemory,
    PackedWeight,
    UnsupportedOperator,
)
from device.reference import ReferenceOps, ReferenceWeight

OPERATORS = frozenset(
    {
        "embedding",
        "rms_norm",
        "linear",
        "gated_mlp",
        "paged_attention",
        "paged_latent_attention",
        "route_experts",
        "fused_experts",
        "dense_attention",
        "sample",
    }
)


class CmodelDevice:
    """The host CPU. `CMODEL_FAST_EXEC=0` in the environment computes everything with `device.reference`."""

    name = "cmodel"
    operators = OPERATORS

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.torch_device = torch.device("cpu")
        self._fast = os.environ.get("CMODEL_FAST_EXEC", "1") != "0"
        self.ops: Ops = TorchOps() if self._fast else ReferenceOps()

    def describe(self) -> str:
        """One line for the log."""
        if not self._fast:
            return "cmodel: the reference operators (CMODEL_FAST_EXEC=0), slow"
        return "cmodel: torch's operators"

    def memory(self) -> tuple[int, int]:
        """Bytes (free, in all), of the host or of the control group that this process is in."""
        return host_memory()

    def synchronize(self) -> None:
        """Return: every operator has run when its call returns."""

    def pack(self, weight: CanonicalWeight) -> PackedWeight:
        """Keep the weight as it is."""
        if not self._fast:
            return ReferenceWeight(weight)
        if not isinstance(weight, DenseWeight):
            raise UnsupportedOperator(
                f"cmodel has no kernel for {type(weight).__name__} yet; CMODEL_FAST_EXEC=0 computes it slowly"
            )
        return TorchWeight(weight.values)

    def make_kv_cache(
        self, blocks: int, block_size: int, kv_heads: int, head_dims: tuple[int, int], dtype: torch.dtype
    ) -> KVCache:
        """An uninitialised cache; pages of it that are never written cost no memory."""
        try:
            keys, values = (torch.empty(blocks, block_size, kv_heads, dim, dtype=dtype) for dim in head_dims)
        except RuntimeError as error:
            size = blocks * block_size * kv_heads * sum(head_dims) * dtype.itemsize
            raise OutOfDeviceMemory(f"a KV cache of {size / 2**30:.1f} GiB does not fit in memory") from error
        return KVCache(keys, values)

    def capture(self, fn: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return fn."""
        return fn
