"""Which device --device auto takes, and what `sophserve devices` lists."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from device.interface import AvailableDevice
from sophserve import plugins
from sophserve.measure.devices import devices
from sophserve.model.devices import open_device
from sophserve.plugins import Registered


class Plain:
    """Says nothing of what is there."""

    def __init__(self, index: int) -> None:
        self.index = index


def that_has(*found: AvailableDevice) -> type[Plain]:
    class Kind(Plain):
        @staticmethod
        def available() -> list[AvailableDevice]:
            return list(found)

    return Kind


class Broken(Plain):
    @staticmethod
    def available() -> list[AvailableDevice]:
        raise RuntimeError("no driver is loaded; load it")


@pytest.mark.parametrize(
    ("chip", "taken"),
    [
        (that_has(AvailableDevice(0, "chip", 1)), "tpuv7"),
        (Plain, "tpuv7"),
        (that_has(), "cmodel"),
        (that_has(AvailableDevice(0, "emulator", 1, emulated=True)), "cmodel"),
        (Broken, "cmodel"),
    ],
)
def test_auto_takes_a_chip_and_never_an_emulated_one(
    chip: type[Plain], taken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"cmodel": type("Cmodel", (Plain,), {}), "tpuv7": chip}
    found = {name: Registered(name, kind, "sophserve") for name, kind in kinds.items()}
    monkeypatch.setattr(plugins, "devices", lambda: found)
    monkeypatch.delenv("CHIP_MAP", raising=False)
    with caplog.at_level(logging.WARNING):
        assert type(open_device("auto")) is kinds[taken]
    assert caplog.messages == (["the device tpuv7 is passed over: no driver is loaded; load it"] * (chip is Broken))


def test_devices_are_listed_by_another_process() -> None:
    """torch is for workers."""
    script = "import sys\nfrom sophserve.measure.devices import devices\ndevices([])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    titles, *lines = done.stdout.splitlines()
    assert titles.split() == ["device", "number", "memory", "name"]
    assert any(line.startswith("cmodel") and "GiB" in line and line.endswith(")") for line in lines)


def test_devices_are_listed_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert devices(["--json"]) == 0
    kinds = {each["kind"]: each for each in json.loads(capfd.readouterr().out)}
    (host,) = kinds["cmodel"]["devices"]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < host["memory"] <= total and not host["emulated"] and kinds["cmodel"]["problem"] == ""
