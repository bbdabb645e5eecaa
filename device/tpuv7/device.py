"""Tpuv7Device: an SG2260 chip, or its emulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor

from device.collectives.interface import Communicator, Hosts, SingleRank
from device.collectives.shared_memory import SharedMemoryCommunicator
from device.host import HostDevice
from device.interface import (
    CacheSpec,
    CanonicalWeight,
    CommandRecord,
    DenseWeight,
    ExpertsWeight,
    KVCache,
    LatentUpWeight,
    Ops,
    PackedWeight,
    Role,
    Rope,
    StepInputs,
    UnsupportedOperator,
)
from device.tpuv7.available import available
from device.tpuv7.build import build_kernels
from device.tpuv7.chip import CORES, Chip
from device.tpuv7.communicator import ChipCommunicator
from device.tpuv7.operators import OPERATORS, ChipOps
from device.tpuv7.runtime import Runtime
from device.tpuv7.tensors import ChipTensor, empty, on_chip
from device.tpuv7.weights import pack

KERNEL = "run_program"


class Tpuv7Device(HostDevice):
    """The chip of that number, by the runtime in TPUV7_HOME or the emulator that `sophserve tpuv7 setup` fetched.

    Raises RuntimeError where there is neither, or no such chip.
    """

    name = "tpuv7"
    operators = OPERATORS
    uses_host_memory = False
    fast_in_int8 = False
    available = staticmethod(available)

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._runtime = Runtime(index)
        self.is_emulated = self._runtime.is_emulator
        kernels = self._runtime.load(build_kernels("emulator" if self._runtime.is_emulator else "card"))
        self.chip = Chip(self._runtime, lambda arguments: self._runtime.launch(kernels, KERNEL, arguments, CORES))
        self.ops = cast("Ops", ChipOps(self.chip))  # without those that `operators` leaves out

    def describe(self) -> str:
        kind = "the emulator of an SG2260" if self._runtime.is_emulator else self._runtime.name()
        return f"tpuv7: chip {self.index}, {kind}, {CORES} cores"

    def memory(self) -> tuple[int, int]:
        return self._runtime.memory()

    def synchronize(self) -> None:
        self.chip.flush()

    def put(self, tensor: Tensor) -> Tensor:
        return on_chip(self.chip, tensor)

    def communicator(self, memory: int, rank: int, ranks: int, hosts: Hosts | None = None) -> Communicator:
        if ranks == 1:
            return SingleRank()
        return ChipCommunicator(self.chip, SharedMemoryCommunicator(memory, rank, ranks, hosts))

    def pack(self, weight: CanonicalWeight | ExpertsWeight | LatentUpWeight, role: Role = "other") -> PackedWeight:
        if isinstance(weight, ExpertsWeight | LatentUpWeight):
            raise UnsupportedOperator(f"tpuv7 has no kernel for {type(weight).__name__}")
        if role in ("embedding", "tied_head") and not isinstance(weight, DenseWeight):
            raise UnsupportedOperator(
                "tpuv7 has no kernel for a quantized embedding; use one that is plain, without --head-bits 8"
            )
        return pack(weight, self.chip)

    def prepare(self, inputs: StepInputs, ropes: Sequence[Rope]) -> StepInputs:
        """All numbers of the step in one transfer."""
        names = ("ids", "positions", "input_lengths", "cached_lengths", "slot_mapping", "block_tables")
        given = [getattr(inputs, name) for name in names]
        sizes = [tensor.numel() for tensor in given]
        numbers = empty(self.chip, (sum(sizes),), torch.int32)

        def transfer(_: int = 0) -> None:
            numbers.fill_from(torch.cat([tensor.flatten() for tensor in given]).int())

        if self.chip.recording:
            self.chip.recording.add_host_step(transfer)
        else:
            transfer()
        parts = [numbers[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]
        mine: dict[str, Any] = {
            name: part.view(tensor.shape) for name, part, tensor in zip(names, parts, given, strict=True)
        }
        step = replace(inputs, **mine, rotations={})
        return replace(step, rotations={rope: step.rotation(rope, self.ops) for rope in ropes})

    def make_kv_cache(self, blocks: int, block_size: int, spec: CacheSpec) -> KVCache:
        """Within a block one head after the other, so that the chip reads a head in one piece."""
        keys, values = (
            empty(self.chip, (blocks, spec.heads, block_size, dim), spec.dtype).transpose(1, 2)
            for dim in spec.head_dims
        )
        return KVCache(keys, values)

    def read_blocks(self, kv: KVCache, blocks: Sequence[int]) -> Tensor:
        """Keys, then values of each block."""
        parts = [[_block(cache, block).to_host() for block in blocks] for cache in (kv.keys, kv.values)]
        return torch.cat([torch.stack(part).view(torch.uint8) for part in parts], 1)

    def write_blocks(self, kv: KVCache, blocks: Sequence[int], content: Tensor) -> None:
        keys, values = _block(kv.keys, 0), _block(kv.values, 0)
        parts = content.split([keys.nbytes, values.nbytes], 1)
        for cache, part in zip((kv.keys, kv.values), parts, strict=True):
            for block, row in zip(blocks, part, strict=True):
                _block(cache, block).fill_from(row.contiguous().view(cache.dtype))

    def capture(self, fn: Callable[[], Tensor], rows: int) -> Callable[[int], Tensor] | None:
        recorded = self.chip.record(fn)
        if recorded is None:
            return None
        recording, result = recorded

        def replay(count: int) -> Tensor:
            recording.replay(count)
            return result[:count]

        return replay

    def start_profile(self, max_records: int, mode: int) -> None:
        self.chip.records = []

    def profile_records(self) -> list[CommandRecord]:
        """The commands since the last call: each was launched by itself."""
        self.chip.flush()
        records = self.chip.records or []
        if records:
            self.chip.records = []
        return records

    def stop_profile(self) -> None:
        self.chip.records = None


def _block(cache: Tensor, block: int) -> ChipTensor:
    """All of a block, as it lies there."""
    assert isinstance(cache, ChipTensor)
    values = cache.transpose(1, 2)[block].view(-1)
    assert isinstance(values, ChipTensor)
    return values
