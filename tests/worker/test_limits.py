"""A device's limits are measured in one place, whatever asks for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from device.interface import DenseWeight, OutOfDeviceMemory
from sophserve.measure import limits as bench_limits
from sophserve.measure import limits_process as limits
from sophserve.measure.limits import DeviceLimits
from sophserve.worker import profile_writer as profile


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeDevice:
    """Reads 2e9 bytes of weights a second or does 3e9 operations, whichever takes longer; each second product is
    disturbed. The host's own reads take no time on this clock."""

    uses_host_memory = True
    is_emulated = False

    def __init__(self, clock: Clock, free: int) -> None:
        self.clock, self.free = clock, free
        self.largest = self.calls = 0
        self.ops = SimpleNamespace(linear=self.linear)

    def memory(self) -> tuple[int, int]:
        return self.free, self.free

    def synchronize(self) -> None:
        self.clock.now += 1e-9

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def pack(self, weight: DenseWeight) -> DenseWeight:
        if weight.values.nbytes * 2 > self.free:
            raise OutOfDeviceMemory("no room")
        if weight.values.shape[0] != 64:  # that of the operations
            self.largest = weight.values.nbytes
        return weight

    def linear(self, x: torch.Tensor, weight: DenseWeight) -> None:
        self.calls += 1
        seconds = max(weight.values.nbytes / 2e9, 2 * x.shape[0] * weight.values.numel() / 3e9)
        self.clock.now += seconds * (1 + self.calls % 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    monkeypatch.setattr(limits.cpus, "cache_bytes", lambda: None)
    monkeypatch.setattr(limits, "_known", {})
    for name, value in {"_LARGEST": 8 << 20, "_SMALLEST": 1 << 20, "_SIDE": 64}.items():
        monkeypatch.setattr(limits, name, value)
    # Reading a tensor on the host, which the fake device does not slow down.
    monkeypatch.setattr(torch.Tensor, "sum", lambda self: setattr(clock, "now", clock.now + self.nbytes / 1e9))
    return clock


def test_reads_and_operations_are_told_apart(clock: Clock) -> None:
    device: Any = FakeDevice(clock, 1 << 30)
    found = limits.measure_limits(device, torch.bfloat16)
    assert found and found.shared and device.largest == 8 << 20
    assert found.bandwidth == pytest.approx(2e9, rel=0.01) and found.rate == pytest.approx(3e9, rel=0.01)
    calls = device.calls
    assert limits.measure_limits(device, torch.bfloat16) is found and device.calls == calls


@pytest.mark.parametrize(("cache", "read"), [(1 << 20, 4 << 20), (3 << 18, 4 << 20), (1, 1 << 20), (9 << 20, 8 << 20)])
def test_no_more_is_read_than_caches_ask_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, cache: int, read: int
) -> None:
    monkeypatch.setattr(limits.cpus, "cache_bytes", lambda: cache)
    device: Any = FakeDevice(clock, 1 << 30)
    assert limits.measure_limits(device, torch.bfloat16) and device.largest == read
    device.uses_host_memory = False  # whose caches are not the host's
    limits._known.clear()
    assert limits.measure_limits(device, torch.bfloat16) and device.largest == 8 << 20


def test_a_device_that_is_nearly_full_is_left_alone(clock: Clock) -> None:
    device: Any = FakeDevice(clock, 7 << 20)
    assert limits.measure_limits(device, torch.float32) and device.largest == 2 << 20
    device = FakeDevice(clock, 2 << 20)
    assert limits.measure_limits(device, torch.float16) is None and device.calls == 0
    # And one that has less than it says is none that can be measured, but may be later.
    device = FakeDevice(clock, 1 << 30)
    device.pack = lambda weight: FakeDevice(clock, 0).pack(weight)
    assert limits.measure_limits(device, torch.float16) is None
    assert limits.measure_limits(FakeDevice(clock, 1 << 30), torch.float16)  # type: ignore[arg-type]


def test_an_emulator_is_not_measured(clock: Clock) -> None:
    device: Any = FakeDevice(clock, 1 << 30)
    device.is_emulated = True
    assert limits.measure_limits(device, torch.bfloat16) is None and device.calls == 0


def test_profiles_and_bench_have_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.measure_limits is limits.measure_limits
    known = DeviceLimits(1e10, 1e12, True)
    for found in (known, None):
        monkeypatch.setattr(limits, "open_device", lambda name: name)
        monkeypatch.setattr(limits, "measure_limits", lambda device, dtype, found=found: found)
        monkeypatch.setattr(limits.sys, "argv", ["limits", "cmodel", "bfloat16"])
        assert limits.main() == 0
        printed = capsys.readouterr().out
        run = SimpleNamespace(returncode=0, stdout=printed, stderr="")
        monkeypatch.setattr(bench_limits.subprocess, "run", lambda *args, run=run, **options: run)
        assert bench_limits.limits_of("cmodel", "bfloat16") == found
    assert msgspec.json.decode(printed) is None
