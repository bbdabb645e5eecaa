"""Collectives between chips, by way of the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from device.collectives.shared_memory import SharedMemoryCommunicator
from device.tpuv7.chip import Chip
from device.tpuv7.tensors import ChipTensor


class ChipCommunicator:
    """One rank's end of a group: `device.collectives.interface.Communicator`. While a chip records, what it would do
    is recorded."""

    def __init__(self, chip: Chip, host: SharedMemoryCommunicator) -> None:
        self.rank, self.world_size = host.rank, host.world_size
        self._chip = chip
        self._host = host

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over ranks, in place."""
        if not isinstance(x, ChipTensor):
            return self._host.all_reduce(x)
        self._do(x, lambda part: part.fill_from(self._host.all_reduce(part.to_host())))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x side by side, on the host."""
        if not isinstance(x, ChipTensor):
            return self._host.all_gather(x)
        out = torch.empty(*x.shape[:-1], self.world_size * x.shape[-1], dtype=x.dtype)
        self._do(x, lambda part: out[: len(part)].copy_(self._host.all_gather(part.to_host())))
        return out

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The source rank's x, of the host."""
        return self._host.broadcast(x, source)

    def _do(self, x: ChipTensor, step: Callable[[Any], object]) -> None:
        """Now, or whenever what is recorded is run, on as many rows."""
        if self._chip.recording:
            self._chip.recording.add_host_step(lambda rows: step(x[:rows]))
        else:
            step(x)
