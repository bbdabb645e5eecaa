"""The devices of this machine: `python -m sophserve.measure.devices_process` prints them as JSON."""

from __future__ import annotations

import sys
import warnings

import msgspec

from sophserve import plugins
from sophserve.measure.devices import DeviceKind, FoundDevice
from sophserve.model.devices import available


def main() -> int:
    """Print what there is of each kind that is installed."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    print(msgspec.json.encode([_kind(each) for each in plugins.devices().values()]).decode())
    return 0


def _kind(registered: plugins.Registered) -> DeviceKind:
    try:
        found = available(registered.value)
    except RuntimeError as error:
        return DeviceKind(registered.name, [], str(error))
    if found is None:
        return DeviceKind(registered.name, [FoundDevice(0)])
    return DeviceKind(
        registered.name, [FoundDevice(each.index, each.name, each.memory, each.emulated) for each in found]
    )


if __name__ == "__main__":
    sys.exit(main())
