"""Asks the runtime in a process of its own, for it takes 360 MiB and may end or hang the process that it is in.

`python -m device.tpuv7.check [KERNELS]` prints the chips as JSON, once it has run the kernel `self_test` of that file.
"""

from __future__ import annotations

import array
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.runtime import CORES, Runtime

SECONDS = 120
_LANES = 64


class Chip(NamedTuple):
    """What a chip calls itself, and its memory in bytes."""

    name: str
    memory: int


def chips(kernels: Path | None = None) -> list[Chip]:
    """Those that the runtime finds, of emulated ones one, after a computation with these kernels. Raises Tpuv7Error."""
    command = [sys.executable, "-P", "-m", "device.tpuv7.check", *([str(kernels)] if kernels else [])]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Tpuv7Error(
            f"the tpuv7 runtime did not answer within {SECONDS} seconds; end other processes that use it, and look for "
            "errors of the driver with dmesg"
        ) from None
    if ended.returncode == 0:
        return [Chip(*each) for each in json.loads(ended.stdout)]
    words = ended.stderr.strip().splitlines()
    if ended.returncode == 2:
        raise Tpuv7Error(words[-1])
    how = f"with status {ended.returncode}" if ended.returncode > 0 else f"by {signal.Signals(-ended.returncode).name}"
    raise Tpuv7Error(f"the tpuv7 runtime ended its process {how}: {words[-1] if words else 'it gave no reason'}")


def main(arguments: list[str]) -> int:
    """Print the chips, or, with exit code 2, what is wrong."""
    try:
        first = Runtime()
        others = [] if first.is_emulator else [Runtime(index) for index in range(1, first.count())]
        if arguments:
            _compute(first, Path(arguments[0]))
        print(json.dumps([(each.name(), each.memory()[1]) for each in (first, *others)]))
    except Tpuv7Error as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _compute(runtime: Runtime, kernels: Path) -> None:
    count = _LANES * CORES * 16
    numbers, found = array.array("f", range(count)), array.array("f", bytes(4 * count))
    place, _ = numbers.buffer_info()
    left, total = (runtime.allocate(4 * count) for _ in range(2))
    runtime.upload(left, place, 4 * count)
    runtime.launch(runtime.load(kernels), "self_test", struct.pack("<QQQi", total, left, left, count))
    runtime.download(found.buffer_info()[0], total, 4 * count)
    if found != array.array("f", (2 * each for each in numbers)):
        raise Tpuv7Error("a kernel computed wrong numbers; set the emulator up anew, or look for errors of the chip")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
