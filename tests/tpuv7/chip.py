"""Commands run on the emulated chip, on tensors of the host."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from device.tpuv7.accounts import Account, read_accounts
from device.tpuv7.build import build_kernels
from device.tpuv7.commands import Command, Launch, program
from device.tpuv7.runtime import CORES, Runtime


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
        size = cores * ctypes.sizeof(Account)
        accounts = self.put(torch.zeros(size, dtype=torch.uint8))
        content = torch.frombuffer(bytearray(program(commands)), dtype=torch.uint8)
        launch = Launch(self.put(content), accounts, len(commands), rows)
        self._runtime.launch(self._module, "run_program", bytes(launch), cores)
        return read_accounts(bytes(self.get(accounts, (size,), torch.uint8).tolist()))

    def clear(self) -> None:
        """Forget all that was put."""
        for address in self._held:
            self._runtime.free(address)
        self._held.clear()
