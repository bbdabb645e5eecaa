"""What this machine's devices reach at most, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from sophserve.errors import SophserveError


class DeviceLimits(msgspec.Struct, frozen=True):
    """Of one device: bytes a second that it reads, operations a second that it does in large products.

    shared: all ranks are on this one.
    """

    bandwidth: float
    rate: float
    shared: bool


class FormatSpeed(msgspec.Struct, frozen=True):
    """What a device reaches with weights of one format: bytes of them that it reads a second for one row, and
    operations a second for many rows."""

    name: str
    read: float
    rate: float


def limits_of(device: str, dtype: str) -> DeviceLimits | None:
    """Those of a device, by its name, with weights of dtype, as a worker measures them; None where it has no room for
    that. Takes seconds. Raises SophserveError."""
    command = [sys.executable, "-m", "sophserve.measure.limits_process", device, dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SophserveError(f"the device's limits could not be measured: {done.stdout or done.stderr}")
    return msgspec.json.decode(done.stdout, type=DeviceLimits | None)
