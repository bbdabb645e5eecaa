"""Where the runtime, the emulator, the vendor's headers and our kernels lie on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from device.tpuv7.errors import Tpuv7Error

WHEEL = "tpu_mlir"
WHEEL_VERSION = "1.30.2"
"""The package that the emulator and the headers are taken from. Its own code is not used."""

RUNTIME = "libtpuv7_rt.so"
# The emulator's runtime is linked to this one, a card's is not.
EMULATED_CONTROL = "libcdm_daemon_emulator.so"
EMULATOR = "libtpuv7_emulator.so"
SCALAR_EMULATOR = "libtpuv7_scalar_emulator.so"
FIRMWARE = "libfirmware_core.a"
DEFAULT_HOME = Path("/opt/tpuv7")
DRIVER = Path("/proc/sgdrv")
SETUP = "`sophserve tpuv7 setup`"


@dataclass(frozen=True)
class Runtime:
    """A runtime's folder of libraries, and whether it is the emulator's."""

    libraries: Path
    emulated: bool

    @property
    def file(self) -> Path:
        return self.libraries / RUNTIME


def cache_directory() -> Path:
    """Where what was set up and built for this device is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sophserve" / "tpuv7"


def package_directory() -> Path:
    """Where the set-up puts what it takes from the wheel: `lib` and `include`."""
    return cache_directory() / f"{WHEEL}-{WHEEL_VERSION}"


def find_runtime() -> Runtime:
    """The runtime below TPUV7_HOME; where that is not set, the one below /opt/tpuv7 or else the emulator that was set
    up. Raises Tpuv7Error."""
    home = os.environ.get("TPUV7_HOME")
    folders = [Path(home) / "lib"] if home else [DEFAULT_HOME / "lib", package_directory() / "lib"]
    for folder in folders:
        if (folder / RUNTIME).is_file():
            return _checked(folder)
    if home:
        raise Tpuv7Error(f"TPUV7_HOME is {home}, but there is no lib/{RUNTIME} in it; correct or unset it")
    raise Tpuv7Error(
        f"there is no tpuv7 runtime in {DEFAULT_HOME}; install the chip's driver and runtime there or name their "
        f"folder in TPUV7_HOME, or set up the emulator with {SETUP}"
    )


def headers() -> Path:
    """The folder with the vendor's kernel headers: TPUV7_HOME/include or what was set up. Raises Tpuv7Error."""
    home = os.environ.get("TPUV7_HOME")
    folders = [*([Path(home) / "include"] if home else []), package_directory() / "include"]
    for folder in folders:
        if (folder / "tpu_kernel.h").is_file():
            return folder
    raise Tpuv7Error(f"the vendor's kernel headers are not in {folders[-1]}; fetch them with {SETUP}")


def emulator_libraries() -> Path:
    """The folder with the emulator that kernels for it are linked to. Raises Tpuv7Error."""
    runtime = find_runtime()
    if not runtime.emulated:
        raise Tpuv7Error(f"the runtime in {runtime.libraries} is a chip's, which kernels for the emulator do not fit")
    return runtime.libraries


def firmware() -> Path | None:
    """The vendor's library that kernels for a chip are linked to. It comes with the chip's development packages and is
    in no public package; kernels can be compiled without it, but not run."""
    homes = [os.environ.get("TPUV7_HOME"), DEFAULT_HOME]
    files = (Path(home) / "lib" / FIRMWARE for home in homes if home)
    return next((path for path in files if path.is_file()), None)


def _checked(folder: Path) -> Runtime:
    emulated = (folder / EMULATED_CONTROL).is_file()
    if emulated:
        for name in (EMULATOR, SCALAR_EMULATOR):
            if not (folder / name).is_file():
                raise Tpuv7Error(
                    f"the runtime in {folder} is an emulator's, but {name} is missing beside it; install it whole, or "
                    f"unset TPUV7_HOME and run {SETUP}"
                )
    elif not DRIVER.is_dir():
        raise Tpuv7Error(
            f"the runtime in {folder} is for a chip, but no driver is loaded ({DRIVER} is not there) and no emulator "
            f"lies beside it; load the driver, or set up the emulator with {SETUP} and set TPUV7_HOME to "
            f"{package_directory()}"
        )
    return Runtime(folder, emulated)
