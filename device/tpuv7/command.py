"""`sophserve tpuv7`: what the chip's software or its emulator needs on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from device.tpuv7 import setup
from device.tpuv7.build import Target, build_kernels
from device.tpuv7.check import chips
from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import DRIVER, FIRMWARE, firmware


def main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    given = _parser().parse_args(argv)
    try:
        _set_up(given.target, given.wheel)
    except Tpuv7Error as error:
        print(f"sophserve: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sophserve tpuv7", description="Prepare the device tpuv7.", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser(
        "setup",
        allow_abbrev=False,
        help="fetch the emulator and the kernel headers, and build the kernels",
        description="Fetch the chip's emulator and the vendor's kernel headers from the Python package "
        f"{setup.WHEEL} {setup.WHEEL_VERSION} by way of pip, 312 MB, build the kernels and try them.",
    )
    action.add_argument(
        "--target", choices=("emulator", "card"), default="emulator", help="what to build for (default: emulator)"
    )
    action.add_argument("--wheel", type=Path, metavar="FILE", help="that package's wheel, where it cannot be fetched")
    return parser


def _set_up(target: Target, wheel: Path | None) -> None:
    if not setup.is_installed() and wheel is None:
        print(f"fetching {setup.WHEEL} {setup.WHEEL_VERSION}, 312 MB", flush=True)
    print(f"emulator and headers: {setup.install(wheel)}", flush=True)
    kernels = build_kernels(target, only_compile=True)
    print(f"kernels: {kernels}", flush=True)
    if target == "card" and firmware() is None:
        print(f"They compile. To run on a chip they must be linked to {FIRMWARE} of its development package.")
    elif target == "card" and not DRIVER.is_dir():
        print("They were not tried, for no chip's driver is loaded.")
    else:
        ran_on = "the emulator" if target == "emulator" else "the chip"
        print(f"A kernel ran on {ran_on} {chips(kernels)[0].name} and computed what it should.")
