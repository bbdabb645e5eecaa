"""What goes wrong with the chip and what belongs to it."""

from __future__ import annotations


class Tpuv7Error(RuntimeError):
    """The chip, its runtime or its kernels cannot be used, and what to do."""


STATUS = {
    -1: "refused by the chip's control processor",
    1: "tpuRtDevnotready",
    2: "tpuRtErrFailure",
    3: "tpuRtErrTimeout",
    4: "tpuRtErrParam",
    5: "tpuRtErrNomem",
    6: "tpuRtErrData",
    7: "tpuRtErrBusy",
    8: "tpuRtErrNoFeature",
    9: "tpuRtErrNotSupported",
    10: "tpuRtErrorInitializationError",
    11: "tpuRtErrorNoDevice",
    12: "tpuRtErrorNoStream",
    13: "tpuRtErrorInvalidValue",
    14: "tpuRtErrorInvalidResourceHandle",
    15: "tpuRtErrorMemoryAllocation",
}
"""tpuRtStatus_t, and what the runtime answers beside it."""

NO_MEMORY = (-1, 5, 15)
"""What an allocation that does not fit is answered with; the emulator says -1."""

_ADVICE = {
    1: "wait until the chip is ready, or look for errors of its driver with dmesg",
    3: "restart; if it happens again, look for errors of the driver with dmesg",
    7: "end the other process that uses the chip, or choose another chip with CHIP_MAP",
    10: "look for errors of the driver with dmesg",
    11: "choose chips that are there with CHIP_MAP",
}


def failed(call: str, status: int) -> Tpuv7Error:
    """The error of a call of the runtime."""
    advice = _ADVICE.get(status, "restart; if it happens again, --log-level debug shows what the runtime says")
    return Tpuv7Error(f"{call} failed with {STATUS.get(status, 'an unknown status')} ({status}); {advice}")
