"""One chip: its memory, and the commands that wait to be run on it.

Commands run in the order in which they are given, so memory that Python has let go of can be given to a later command
at once. They wait until there is a launch's worth of them, or until the host needs a result.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from device.interface import CommandRecord, OutOfDeviceMemory
from device.tpuv7.accounts import Account, command_record, read_accounts
from device.tpuv7.commands import COMMAND_BYTES, Command, Launch, program

CORES = 8
# Commands of one launch: a worker gives a sign of life between two.
MOST_WAITING = 16
# What is allocated is a multiple of this, so that a later request is more likely to fit.
ALIGNMENT = 4096


class Runtime(Protocol):
    """What of `device.tpuv7.runtime.Runtime` a chip needs."""

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, host_pointer: int, nbytes: int) -> None: ...

    def download(self, host_pointer: int, address: int, nbytes: int) -> None: ...


class CannotRecord(RuntimeError):
    """The host needs a result in the middle of what is being recorded."""


class Block:
    """A piece of the chip's memory that is free again when nothing refers to it any more."""

    def __init__(self, chip: Chip, pool: Pool, nbytes: int) -> None:
        self.chip = chip
        self._pool = pool
        self._size = rounded(nbytes)
        try:
            self.address = pool.take(self._size)
        except OutOfDeviceMemory:
            chip.trim()
            self.address = pool.take(self._size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._pool.give_back(self.address, self._size)


def rounded(nbytes: int) -> int:
    """The size of a block: one of eight between a power of two and the next, so that few sizes are in use."""
    step = max(ALIGNMENT, 1 << max(0, nbytes.bit_length() - 4))
    return max(1, -(-nbytes // step)) * step


class Pool:
    """Memory that is used again for pieces of the same size. It goes back to the chip with the pool."""

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None]) -> None:
        self._allocate, self._free = allocate, free
        self._unused: dict[int, list[int]] = defaultdict(list)
        # All of it: blocks keep their pool alive. A process that ends has nothing to give back.
        weakref.finalize(self, _free_all, self._unused, free).atexit = False

    def take(self, size: int) -> int:
        unused = self._unused[size]
        return unused.pop() if unused else self._allocate(size)

    def give_back(self, address: int, size: int) -> None:
        self._unused[size].append(address)

    def trim(self) -> None:
        """Give what nobody uses back to the chip."""
        _free_all(self._unused, self._free)


def _free_all(unused: dict[int, list[int]], free: Callable[[int], None]) -> None:
    for addresses in unused.values():
        for address in addresses:
            free(address)
    unused.clear()


class Recording:
    """What is to be done again: host functions that are told how many rows, and programs between them."""

    def __init__(self, chip: Chip, pool: Pool, stored: Pool) -> None:
        self._chip = chip
        self.pool = pool  # its own: results lie between replays where nobody else may write
        self.stored = stored
        self._steps: list[Callable[[int], object]] = []
        self._waiting: list[Command] = []
        self.kept: list[Block] = []  # what is stored once must be there at each replay

    def add(self, command: Command) -> None:
        self._waiting.append(command)

    def add_host_step(self, step: Callable[[int], object]) -> None:
        self.close()
        self._steps.append(step)

    def close(self) -> None:
        """End a program."""
        if not self._waiting:
            return
        chip, commands, self._waiting = self._chip, self._waiting, []
        block = chip.store(program(commands))
        self._steps.append(lambda rows: chip.run(block.address, commands, rows))

    def replay(self, rows: int) -> None:
        self._chip.flush()
        for step in self._steps:
            step(rows)


class Chip:
    """Commands and memory of one chip. records: what was run, by command, while that is asked for.

    launches: how many there were.
    """

    def __init__(self, runtime: Runtime, launch: Callable[[bytes], None]) -> None:
        self.runtime = runtime
        self._launch = launch
        self._pool = Pool(runtime.allocate, runtime.free)
        self._waiting: list[Command] = []
        self.recording: Recording | None = None
        # Their own from the beginning: what is free now may be read by commands that wait.
        self._program = self.new(MOST_WAITING * COMMAND_BYTES)
        self._accounts = self.new(CORES * ctypes.sizeof(Account))
        self.records: list[CommandRecord] | None = None
        self.launches = 0

    def new(self, nbytes: int) -> Block:
        """Memory for a result. Raises OutOfDeviceMemory."""
        return Block(self, self.recording.pool if self.recording else self._pool, nbytes)

    def trim(self) -> None:
        """Give memory back that only waits to be used again."""
        self.flush()
        self._pool.trim()

    def store(self, content: bytes | Tensor) -> Block:
        """Memory with some content."""
        tensor = content if isinstance(content, Tensor) else torch.frombuffer(bytearray(content), dtype=torch.uint8)
        # What a recording stores it stores once, so never where its commands have put a result that is free again.
        block = Block(self, self.recording.stored, tensor.nbytes) if self.recording else self.new(tensor.nbytes)
        self.upload(block.address, tensor)
        if self.recording:
            self.recording.kept.append(block)
        return block

    def upload(self, address: int, tensor: Tensor) -> None:
        """Copy a host tensor to the chip."""
        self.flush()  # what waits may still read what lies there
        tensor = tensor.contiguous()
        if tensor.nbytes:
            self.runtime.upload(address, tensor.data_ptr(), tensor.nbytes)

    def download(self, address: int, tensor: Tensor) -> None:
        """Fill a contiguous host tensor."""
        if self.recording:
            raise CannotRecord
        self.flush()
        if tensor.nbytes:
            self.runtime.download(tensor.data_ptr(), address, tensor.nbytes)

    def add(self, command: Command) -> None:
        """Run a command after those before it."""
        if self.recording:
            self.recording.add(command)
            return
        self._waiting.append(command)
        if len(self._waiting) >= MOST_WAITING:
            self.flush()

    def record(self, fn: Callable[[], Tensor]) -> tuple[Recording, Tensor] | None:
        """What fn does, and its result; None where the host needs a result meanwhile."""
        self.flush()
        pool, stored = (Pool(self.runtime.allocate, self.runtime.free) for _ in range(2))
        self.recording = recording = Recording(self, pool, stored)
        try:
            result = fn()
            recording.close()
        except CannotRecord:
            return None
        finally:
            self.recording = None
        return recording, result

    def flush(self) -> None:
        """Run the commands that wait."""
        if not self._waiting:
            return
        commands, self._waiting = self._waiting, []
        content = torch.frombuffer(bytearray(program(commands)), dtype=torch.uint8)
        self.runtime.upload(self._program.address, content.data_ptr(), content.nbytes)
        self.run(self._program.address, commands)

    def run(self, address: int, commands: Sequence[Command], rows: int = 0) -> None:
        """Run the program at an address, on the first `rows` rows, or all of them."""
        if self.records is None:
            self._start(Launch(address, 0, len(commands), rows))
            return
        for index, command in enumerate(commands):
            start = time.monotonic_ns()
            account = self._accounted(Launch(address + index * COMMAND_BYTES, 0, 1, rows))
            self.records.append(command_record(command, start, time.monotonic_ns(), account, rows))

    def _start(self, launch: Launch) -> None:
        self.launches += 1
        self._launch(bytes(launch))

    def _accounted(self, launch: Launch) -> Account:
        size = CORES * ctypes.sizeof(Account)
        launch.accounts = self._accounts.address
        self._start(launch)
        found = torch.empty(size, dtype=torch.uint8)
        self.runtime.download(found.data_ptr(), self._accounts.address, size)
        return read_accounts(bytes(found.tolist()))
