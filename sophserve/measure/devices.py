"""`sophserve devices`: what a model can run on in this machine. A process of its own looks, for drivers and runtimes
may print, take memory, or end the process that loads them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from sophserve.errors import SophserveError
from sophserve.options import CommandParser
from sophserve.table import size


class FoundDevice(msgspec.Struct, frozen=True):
    """As device.interface.AvailableDevice. name and memory are None where the device does not say."""

    index: int
    name: str | None = None
    memory: int | None = None
    emulated: bool = False


class DeviceKind(msgspec.Struct, frozen=True):
    """A name for --device, the devices of that kind, and why none can be used, where something is wrong."""

    kind: str
    devices: list[FoundDevice]
    problem: str = ""


def devices(argv: Sequence[str]) -> int:
    """Print the devices of this machine."""
    parser = CommandParser("devices", "List the devices of this machine that a model can run on.")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    given = vars(parser.parse_args(argv))
    found = find_devices()
    print(json.dumps(msgspec.to_builtins(found), indent=2) if given.get("json") else _text(found))
    return 0


def find_devices() -> list[DeviceKind]:
    """The devices of each kind that is installed. Takes seconds. Raises SophserveError."""
    command = [sys.executable, "-P", "-m", "sophserve.measure.devices_process"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SophserveError(f"the devices could not be listed: {done.stderr.strip() or done.stdout}")
    return msgspec.json.decode(done.stdout, type=list[DeviceKind])


def _text(found: Sequence[DeviceKind]) -> str:
    cells = [
        [
            kind.kind,
            str(each.index),
            "unknown" if each.memory is None else size(each.memory),
            f"{each.name or 'unknown'}{', emulated' if each.emulated else ''}",
        ]
        for kind in found
        for each in kind.devices
    ]
    titles = ["device", "number", "memory", "name"]
    widths = [max(len(row[column]) for row in [titles, *cells]) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [titles, *cells]]
    for kind in found:
        if not kind.devices:
            lines.append(f"{kind.kind}: {kind.problem or 'none is here'}")
    return "\n".join(line.rstrip() for line in lines)
