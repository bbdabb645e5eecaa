"""What a device reaches at most: `python -m sophserve.measure.limits_process DEVICE DTYPE` prints it as JSON."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
import torch

from device import cpus
from device.interface import (
    CanonicalWeight,
    DenseWeight,
    Device,
    Float8Weight,
    IntWeight,
    OutOfDeviceMemory,
    UnsupportedOperator,
)
from sophserve.errors import SophserveError
from sophserve.measure.limits import DeviceLimits, FormatSpeed
from sophserve.model.devices import open_device

# Bytes to read where nothing is known of the caches: more than any has if there is room, and more than most have.
_LARGEST, _SMALLEST = 512 << 20, 64 << 20
_SIDE = 4096
_ROWS = 512
# Less, where many formats are measured.
_FORMAT_BYTES = 128 << 20
_FEW_ROWS = 128
_SHORT_PERIOD = 0.1
# Seconds for each kind of work: the best time counts, for the machine may do other things as well.
_PERIOD = 0.3


# Those of the process's device, once measured.
_known: dict[torch.dtype, DeviceLimits] = {}


def measure_limits(device: Device, dtype: torch.dtype) -> DeviceLimits | None:
    """The best of some attempts: bytes a second of reading a large tensor or a large weight, operations a second of a
    large product with weights of dtype. None where the device has no room to try, or is an emulator. Takes seconds, the
    first time."""
    if device.is_emulated:
        return None
    if dtype not in _known and (found := _measure(device, dtype)):
        _known[dtype] = found
    return _known.get(dtype)


def _reading(cache: int | None) -> int:
    """Bytes to read of which a cache keeps none until they are read again: four times as many as it has, where its size
    is known."""
    size = _LARGEST
    while cache and size >= 8 * cache and size > _SMALLEST:
        size //= 2
    return size


def _measure(device: Device, dtype: torch.dtype) -> DeviceLimits | None:
    size = _reading(cpus.cache_bytes() if device.uses_host_memory else None)
    while 3 * size > device.memory()[0]:  # a weight, what it is packed from, and some
        size //= 2
        if size < _SMALLEST:
            return None
    try:
        numbers = device.put(torch.ones(size // 4, dtype=torch.float32))
        read = size / _best(numbers.sum, device.synchronize)
        del numbers
        dense = partial(_dense, dtype)
        read = max(read, size / _product_seconds(device, dense, 1, size // (_SIDE * dtype.itemsize), dtype))
        rate = 2 * _ROWS * _SIDE * _SIDE / _product_seconds(device, dense, _ROWS, _SIDE, dtype)
    except (OutOfDeviceMemory, MemoryError, UnsupportedOperator):
        return None
    return DeviceLimits(bandwidth=read, rate=rate, shared=device.uses_host_memory)


def format_speeds(device: Device) -> list[FormatSpeed]:
    """What the device reaches with weights of the formats that it has: none where it has no room to try, or is an
    emulator. Takes seconds."""
    found: list[FormatSpeed] = []
    if device.is_emulated:
        return found
    for name, (make, dtype) in _FORMATS.items():
        try:
            weight = device.pack(make(_SIDE))
            outputs = _SIDE * max(1, _FORMAT_BYTES // weight.nbytes)
            if device.memory()[0] < 12 * _FORMAT_BYTES:
                continue
            read = outputs // _SIDE * weight.nbytes / _product_seconds(device, make, 1, outputs, dtype, _SHORT_PERIOD)
            seconds = _product_seconds(device, make, _FEW_ROWS, _SIDE, dtype, _SHORT_PERIOD)
            rate = 2 * _FEW_ROWS * _SIDE * _SIDE / seconds
        except (OutOfDeviceMemory, MemoryError, UnsupportedOperator):
            continue
        found.append(FormatSpeed(name, read, rate))
    return found


def _dense(dtype: torch.dtype, outputs: int) -> CanonicalWeight:
    return DenseWeight(torch.ones(outputs, _SIDE, dtype=dtype))


def _codes(bits: Literal[4, 8], activations: Literal["float", "blocks"], outputs: int) -> CanonicalWeight:
    values = torch.ones(outputs, _SIDE * bits // 8, dtype=torch.uint8)
    groups = outputs, _SIDE // 128
    middle = torch.full(groups, 1 << (bits - 1), dtype=torch.uint8)
    return IntWeight(values, torch.ones(groups, dtype=torch.float16), middle, 128, bits, activations=activations)


def _float8(outputs: int) -> CanonicalWeight:
    values = torch.ones(outputs, _SIDE).to(torch.float8_e4m3fn)
    return Float8Weight(values, torch.ones(outputs, _SIDE // 128))


# Weights with so many outputs, and the dtype of what they are multiplied with.
_Make = Callable[[int], CanonicalWeight]
_FORMATS: dict[str, tuple[_Make, torch.dtype]] = {
    "bfloat16": (partial(_dense, torch.bfloat16), torch.bfloat16),
    "float32": (partial(_dense, torch.float32), torch.float32),
    "int8": (partial(_codes, 8, "float"), torch.bfloat16),
    "int8 by int8": (partial(_codes, 8, "blocks"), torch.bfloat16),
    "int4": (partial(_codes, 4, "float"), torch.bfloat16),
    "int4 by int8": (partial(_codes, 4, "blocks"), torch.bfloat16),
    "float8": (_float8, torch.bfloat16),
}


def _product_seconds(
    device: Device, make: _Make, rows: int, outputs: int, dtype: torch.dtype, period: float | None = None
) -> float:
    """Of the device's linear on so many rows, the best of a period."""
    weight = device.pack(make(outputs))
    x = device.put(torch.ones(rows, _SIDE, dtype=dtype))
    return _best(lambda: device.ops.linear(x, weight), device.synchronize, period)


def _best(call: Callable[[], object], synchronize: Callable[[], None], period: float | None = None) -> float:
    """Seconds of the quickest call of a period, after a first one."""
    period = _PERIOD if period is None else period
    call()
    synchronize()
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < period:
        start = time.perf_counter()
        call()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> int:
    """Print the limits, or, with exit code 2, what is wrong."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    try:
        limits = measure_limits(open_device(sys.argv[1]), getattr(torch, sys.argv[2]))
    except SophserveError as error:
        print(error)
        return 2
    print(msgspec.json.encode(limits).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
