"""Commands run on the emulated chip, on tensors of the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from device.tpuv7.build import build_kernels
from device.tpuv7.commands import Command, Launch, program
from device.tpuv7.runtime import CORES, Runtime


class Account(NamedTuple):
    """What a launch did, over all cores: bytes moved, those of them moved while computing, the most local memory of a
    lane in use, and multiplications and additions."""

    bytes: int
    overlapped: int
    peak: int
    operations: int


class Chip:
    """A runtime with all kernels, and what tests put into its memory until `clear`."""

    def __init__(self) -> None:
        self._runtime = Runtime()
        self._module = self._runtime.load(build_kernels())
        self._held: list[int] = []

    def put(self, values: Tensor) -> int:
        """The address of a copy."""
        values = values.contiguous()
        address = self._runtime.allocate(max(values.nbytes, 1))
        self._held.append(address)
        if values.nbytes:
            self._runtime.upload(address, values.data_ptr(), values.nbytes)
        return address

    def get(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What lies at an address."""
        values = torch.empty(shape, dtype=dtype)
        self._runtime.download(values.data_ptr(), address, values.nbytes)
        return values

    def run(self, commands: list[Command], cores: int = CORES, rows: int = 0) -> Account:
        """Launch a program and wait for it. rows: the most that each command works on."""
        accounts = self.put(torch.zeros(cores, 8, dtype=torch.int64))
        content = torch.frombuffer(bytearray(program(commands)), dtype=torch.uint8)
        launch = Launch(self.put(content), accounts, len(commands), rows)
        self._runtime.launch(self._module, "run_program", bytes(launch), cores)
        of_cores = self.get(accounts, (cores, 8), torch.int64)
        moved, overlapped, _, operations, *_ = of_cores.sum(0).tolist()
        return Account(moved, overlapped, int(of_cores[:, 2].max()), operations)

    def clear(self) -> None:
        """Forget all that was put."""
        for address in self._held:
            self._runtime.free(address)
        self._held.clear()
