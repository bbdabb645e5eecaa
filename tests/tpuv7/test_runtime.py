"""The runtime's binding, on the emulator. What could end or hang a process runs in one of its own."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from device.interface import OutOfDeviceMemory
from device.tpuv7.build import build_kernels
from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.runtime import Module, Runtime

pytestmark = pytest.mark.usefixtures("emulator")
COUNT = 64 * 8 * 16


@pytest.fixture(scope="module")
def runtime(emulator: None) -> Runtime:
    return Runtime()


@pytest.fixture(scope="module")
def module(runtime: Runtime, self_test_sources: Path) -> Module:
    return runtime.load(build_kernels(sources=self_test_sources))


@pytest.fixture
def memory(runtime: Runtime) -> Iterator[list[int]]:
    addresses = [runtime.allocate(4 * COUNT) for _ in range(3)]
    yield addresses
    for address in addresses:
        runtime.free(address)


def upload(runtime: Runtime, address: int, values: torch.Tensor) -> None:
    runtime.upload(address, values.data_ptr(), values.nbytes)


def download(runtime: Runtime, address: int, like: torch.Tensor) -> torch.Tensor:
    found = torch.empty_like(like)
    runtime.download(found.data_ptr(), address, found.nbytes)
    return found


def test_copies_are_exact_at_any_size_and_place(runtime: Runtime, memory: list[int]) -> None:
    for offset, size in ((0, 1), (3, 13), (1, 4097), (0, 4 * COUNT)):
        values = torch.randint(0, 256, (size,), dtype=torch.uint8)
        upload(runtime, memory[0] + offset, values)
        runtime.copy(memory[1] + offset, memory[0] + offset, size)
        assert torch.equal(download(runtime, memory[1] + offset, values), values)


def test_filled_bytes_are_those_asked_for_and_no_others(runtime: Runtime) -> None:
    size = (5 << 20) + 7
    address = runtime.allocate(size + 2)
    whole = torch.zeros(size + 2, dtype=torch.uint8)
    upload(runtime, address, whole)
    runtime.fill(address + 1, 171, size)
    whole[1:-1] = 171
    assert torch.equal(download(runtime, address, whole), whole)
    runtime.free(address)


@pytest.mark.parametrize("cores", [1, 8])
def test_a_kernel_computes(runtime: Runtime, module: Module, memory: list[int], cores: int) -> None:
    left, right = torch.randn(2, COUNT)
    upload(runtime, memory[1], left)
    upload(runtime, memory[2], right)
    runtime.launch(module, "self_test", struct.pack("<QQQi", *memory, COUNT), cores)
    assert torch.equal(download(runtime, memory[0], left), left + right)


def test_a_download_waits_for_all_launches(runtime: Runtime, module: Module, memory: list[int]) -> None:
    """The runtime's tpuRtMemcpyD2S overtakes launches that are under way."""
    total, ones = torch.arange(COUNT, dtype=torch.float32), torch.ones(COUNT)
    upload(runtime, memory[0], total)
    upload(runtime, memory[1], ones)
    for _ in range(60):
        runtime.launch(module, "self_test", struct.pack("<QQQi", memory[0], memory[0], memory[1], COUNT))
    assert torch.equal(download(runtime, memory[0], total), total + 60)


def test_free_memory_is_counted(runtime: Runtime) -> None:
    free, total = runtime.memory()
    assert 0 < free <= total
    address = runtime.allocate(10 << 20)
    assert runtime.memory() == (free - (10 << 20), total)
    runtime.free(address)
    assert runtime.memory() == (free, total)


def test_too_little_device_memory_is_said(runtime: Runtime) -> None:
    with pytest.raises(OutOfDeviceMemory, match="do not fit in the chip's memory"):
        runtime.allocate(runtime.memory()[1] + 1)


def test_an_unknown_kernel_is_refused(runtime: Runtime, module: Module) -> None:
    """The runtime answers with success."""
    with pytest.raises(Tpuv7Error, match="has no kernel sum"):
        runtime.launch(module, "sum", b"")


def test_copies_elsewhere_are_refused(runtime: Runtime, memory: list[int]) -> None:
    """The emulator tries them for ever."""
    values = torch.zeros(COUNT + 1)
    for address, size in ((16, 1), (memory[0] + 1, 4 * COUNT), (memory[0] - 1, 2), (memory[0], -1)):
        with pytest.raises(ValueError, match="do not lie within what was allocated"):
            runtime.upload(address, values.data_ptr(), size)


def test_arguments_that_would_hang_or_end_the_process_are_refused(runtime: Runtime, module: Module) -> None:
    with pytest.raises(ValueError, match="bytes of arguments"):
        runtime.launch(module, "self_test", bytes(1 << 20))
    for cores in (0, 9):
        with pytest.raises(ValueError, match="cores"):
            runtime.launch(module, "self_test", bytes(28), cores)
    with pytest.raises(ValueError, match="cannot allocate 0 bytes"):
        runtime.allocate(0)
    with pytest.raises(ValueError, match="was not allocated"):
        runtime.free(16)


def test_a_chip_that_is_not_there_is_named(runtime: Runtime) -> None:
    """The runtime takes any number."""
    for index in (-1, runtime.count()):
        with pytest.raises(Tpuv7Error, match=f"there is no chip {index}: .* CHIP_MAP"):
            Runtime(index)
