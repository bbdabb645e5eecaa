"""Registers the tpuv7 device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

hookimpl = pluggy.HookimplMarker("sophserve")


@hookimpl
def register_devices(register: Callable[[str, Any], None]) -> None:
    from device.tpuv7.device import Tpuv7Device  # here, so that a process that only lists plugins skips torch

    register("tpuv7", Tpuv7Device)
