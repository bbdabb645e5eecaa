"""What devices have in common whose memory is the host's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from device.collectives.interface import Communicator, Hosts, SingleRank
from device.collectives.shared_memory import SharedMemoryCommunicator
from device.interface import CacheSpec, KVCache, PackedWeight, Role, Rope, StepInputs
from device.operator_profile import OperatorProfile


class HostDevice(OperatorProfile):
    """A device that computes on the host, one operator after the other: all of `Device` that it need not have an
    opinion of."""

    layout = ""
    uses_host_memory = True
    fast_in_int8 = False
    is_emulated = False

    def __init__(self, index: int = 0) -> None:
        self.index = index

    def synchronize(self) -> None:
        """Return: every operator has run when its call returns."""

    def put(self, tensor: Tensor) -> Tensor:
        return tensor

    def shard(self, count: int, role: Role, rank: int, ranks: int, *, replicate: bool = False) -> slice | None:
        """Even shares in order; of a vocabulary, the last rank may hold less."""
        if role in ("head", "tied_head", "embedding"):
            each = -(-count // ranks)
            return slice(rank * each, min((rank + 1) * each, count)) if each * (ranks - 1) < count else None
        if count % ranks == 0:
            return slice(rank * count // ranks, (rank + 1) * count // ranks)
        first = rank * count // ranks
        return slice(first, first + 1) if replicate and ranks % count == 0 else None

    def communicator(self, memory: int, rank: int, ranks: int, hosts: Hosts | None = None) -> Communicator:
        """By way of shared memory, and of TCP between hosts, without the device."""
        return SingleRank() if ranks == 1 else SharedMemoryCommunicator(memory, rank, ranks, hosts)

    def state_of(self, weight: PackedWeight) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        return None

    def restore(self, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> PackedWeight:
        raise NotImplementedError

    def prepare(self, inputs: StepInputs, ropes: Sequence[Rope]) -> StepInputs:
        return replace(inputs, rotations={rope: inputs.rotation(rope, self.ops) for rope in ropes})

    def make_kv_cache(self, blocks: int, block_size: int, spec: CacheSpec) -> KVCache:
        """An uninitialised cache in the order of its shape."""
        keys, values = (torch.empty(blocks, block_size, spec.heads, dim, dtype=spec.dtype) for dim in spec.head_dims)
        return KVCache(keys, values)

    def read_blocks(self, kv: KVCache, blocks: Sequence[int]) -> Tensor:
        """Keys, then values of each block."""
        return torch.cat([_by_block(cache)[blocks] for cache in (kv.keys, kv.values)], 1)

    def write_blocks(self, kv: KVCache, blocks: Sequence[int], content: Tensor) -> None:
        keys, values = _by_block(kv.keys), _by_block(kv.values)
        keys[blocks], values[blocks] = content.split([keys.shape[1], values.shape[1]], 1)

    def capture(self, fn: Callable[[], Tensor], rows: int) -> Callable[[int], Tensor] | None:
        return None


def _by_block(cache: Tensor) -> Tensor:
    """uint8 `[blocks, bytes of a block]`, whatever the order within a block, which lies in one piece."""
    return cache.as_strided((len(cache), cache[0].numel()), (cache.stride(0), 1)).view(torch.uint8)
