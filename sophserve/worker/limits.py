"""What a device reaches at most: `python -m sophserve.worker.limits DEVICE DTYPE` prints it as JSON."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import msgspec
import torch

from device.interface import DenseWeight, Device
from sophserve.bench.limits import DeviceLimits
from sophserve.errors import SophserveError
from sophserve.worker.model_runner import open_device

# Larger than any cache.
_BUFFER = 2**29
_SIDE = 4096
_ROWS = 512
_ATTEMPTS = 8
# Seconds after which no further attempt begins.
_LONGEST = 1.0


def measure(device_name: str, dtype: torch.dtype) -> DeviceLimits:
    """The best of some attempts: bytes a second of reading a large tensor or a large weight, operations a second of a
    large product with weights of dtype."""
    device = open_device(device_name)
    place = device.torch_device
    numbers = torch.ones(_BUFFER // 4, dtype=torch.float32, device=place)
    read = _BUFFER / _best(numbers.sum, device.synchronize)
    del numbers
    large = _BUFFER // (_SIDE * dtype.itemsize)
    read = max(read, _BUFFER / _product_seconds(device, dtype, 1, large))
    rate = 2 * _ROWS * _SIDE * _SIDE / _product_seconds(device, dtype, _ROWS, _SIDE)
    return DeviceLimits(bandwidth=read, rate=rate, shared=place.type == "cpu")


def _product_seconds(device: Device, dtype: torch.dtype, rows: int, outputs: int) -> float:
    """Of the device's linear on so many rows."""
    weight = device.pack(DenseWeight(torch.ones(outputs, _SIDE, dtype=dtype)))
    x = torch.ones(rows, _SIDE, dtype=dtype, device=device.torch_device)
    return _best(lambda: device.ops.linear(x, weight), device.synchronize)


def _best(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds of the quickest call."""
    call()
    synchronize()
    best, begin = float("inf"), time.perf_counter()
    for _ in range(_ATTEMPTS):
        start = time.perf_counter()
        call()
        synchronize()
        end = time.perf_counter()
        best = min(best, end - start)
        if end - begin > _LONGEST:
            break
    return best


def main() -> int:
    """Print the limits, or, with exit code 2, what is wrong."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    try:
        limits = measure(sys.argv[1], getattr(torch, sys.argv[2]))
    except SophserveError as error:
        print(error)
        return 2
    print(msgspec.json.encode(limits).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
