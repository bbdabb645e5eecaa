"""The devices that plugins registered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from device.interface import AvailableDevice, Device
from sophserve import plugins
from sophserve.errors import ConfigError
from sophserve.fit import check_device, device_index

log = logging.getLogger(__name__)

# The order in which --device auto looks.
DEVICE_ORDER = ("tpuv7", "gpu", "cmodel")


def open_device(name: str, rank: int = 0) -> Device:
    """A rank's device of that name, or with `auto` of the best kind that is installed. CHIP_MAP in the environment
    lists the ranks' devices by number. Raises ConfigError."""
    installed = plugins.devices()
    if name == "auto":
        name = next((known for known in DEVICE_ORDER if known in installed and _is_there(installed[known])), "auto")
    check_device(name, installed)
    try:
        return installed[name].value(device_index(rank))
    except RuntimeError as error:
        raise ConfigError(f"the device {name} cannot be used: {error}", help="device") from error


def available(device_class: Any) -> list[AvailableDevice] | None:
    """The devices of a class in this machine; None if it does not say. Raises RuntimeError."""
    ask: Callable[[], list[AvailableDevice]] | None = getattr(device_class, "available", None)
    return ask() if ask else None


def _is_there(kind: plugins.Registered) -> bool:
    """Whether auto may take this kind."""
    try:
        found = available(kind.value)
    except RuntimeError as error:
        log.warning("the device %s is passed over: %s", kind.name, error)
        return False
    return found is None or not all(each.emulated for each in found)
