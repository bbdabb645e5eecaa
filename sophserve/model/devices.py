"""The devices that plugins registered."""

from __future__ import annotations

from device.interface import Device
from sophserve import plugins
from sophserve.errors import ConfigError
from sophserve.fit import check_device, device_index

# The order in which --device auto looks.
DEVICE_ORDER = ("tpuv7", "gpu", "cmodel")


def open_device(name: str, rank: int = 0) -> Device:
    """A rank's device of that name, or with `auto` of the best kind that is installed. CHIP_MAP in the environment
    lists the ranks' devices by number. Raises ConfigError."""
    installed = plugins.devices()
    if name == "auto":
        name = next((known for known in DEVICE_ORDER if known in installed), "auto")
    check_device(name, installed)
    try:
        return installed[name].value(device_index(rank))
    except RuntimeError as error:
        raise ConfigError(f"the device {name} cannot be used: {error}") from error
