"""What a device reaches at most: `python -m sophserve.measure.limits_process DEVICE DTYPE` prints it as JSON."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import msgspec
import torch

from device.interface import DenseWeight, Device, OutOfDeviceMemory, UnsupportedOperator
from sophserve.errors import SophserveError
from sophserve.measure.limits import DeviceLimits
from sophserve.model.devices import open_device

# Bytes to read: more than any cache has where there is room, and at least more than most have.
_LARGEST, _SMALLEST = 512 << 20, 64 << 20
_SIDE = 4096
_ROWS = 512
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


def _measure(device: Device, dtype: torch.dtype) -> DeviceLimits | None:
    size = _LARGEST
    while 3 * size > device.memory()[0]:  # a weight, what it is packed from, and some
        size //= 2
        if size < _SMALLEST:
            return None
    try:
        numbers = device.put(torch.ones(size // 4, dtype=torch.float32))
        read = size / _best(numbers.sum, device.synchronize)
        del numbers
        read = max(read, size / _product_seconds(device, dtype, 1, size // (_SIDE * dtype.itemsize)))
        rate = 2 * _ROWS * _SIDE * _SIDE / _product_seconds(device, dtype, _ROWS, _SIDE)
    except (OutOfDeviceMemory, MemoryError, UnsupportedOperator):
        return None
    return DeviceLimits(bandwidth=read, rate=rate, shared=device.uses_host_memory)


def _product_seconds(device: Device, dtype: torch.dtype, rows: int, outputs: int) -> float:
    """Of the device's linear on so many rows."""
    weight = device.pack(DenseWeight(torch.ones(outputs, _SIDE, dtype=dtype)))
    x = device.put(torch.ones(rows, _SIDE, dtype=dtype))
    return _best(lambda: device.ops.linear(x, weight), device.synchronize)


def _best(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds of the quickest call, after a first one."""
    call()
    synchronize()
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < _PERIOD:
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
