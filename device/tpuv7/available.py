"""What `sophserve devices` lists and what `--device auto` chooses by. Nothing is loaded where no driver is."""

from __future__ import annotations

import os

from device.interface import AvailableDevice
from device.tpuv7.check import chips
from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import DRIVER, find_runtime
from device.tpuv7.runtime import emulated_memory


def available() -> list[AvailableDevice]:
    """The chips of this machine, or one emulated. Raises Tpuv7Error."""
    try:
        runtime = find_runtime()
    except Tpuv7Error:
        if DRIVER.is_dir() or os.environ.get("TPUV7_HOME"):
            raise
        return []
    if runtime.emulated:
        return [AvailableDevice(0, "SG2260", emulated_memory(), emulated=True)]
    return [AvailableDevice(index, chip.name, chip.memory) for index, chip in enumerate(chips())]
