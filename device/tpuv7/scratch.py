"""A folder for the sockets and files that the emulator makes and never removes."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from device.tpuv7.errors import Tpuv7Error

# All emulators of a machine use this pipe, whatever the folder.
WAKEUP_PIPE = Path("/tmp/sg_wakeup_stream")
_LOCK = "in-use"
# The path of a Unix socket may have 107 bytes, of which the emulator adds some 25.
_LONGEST = 80


@cache
def scratch_directory() -> Path:
    """A new folder for this process, which is removed at its end. What a killed process left is removed now."""
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > _LONGEST - 40:
        root = Path("/tmp")
    root = root / f"sophserve-tpuv7-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise Tpuv7Error(f"{root} belongs to another user; remove it, or name another folder in TMPDIR")
    for other in root.iterdir():
        _remove_unused(other)
    mine = Path(tempfile.mkdtemp(dir=root, prefix=""))
    # The kernel gives the lock back when this process ends, however it ends.
    fcntl.flock(os.open(mine / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX)
    atexit.register(shutil.rmtree, mine, ignore_errors=True)
    return mine


def _remove_unused(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # just made by another process, which has not locked it yet
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def check_wakeup_pipe() -> None:
    """Raise Tpuv7Error if the emulator could not open its pipe: then it would wait for ever."""
    if WAKEUP_PIPE.exists() and not os.access(WAKEUP_PIPE, os.R_OK | os.W_OK):
        raise Tpuv7Error(
            f"{WAKEUP_PIPE}, which all emulators on this machine use, belongs to another user; have it removed once no "
            "emulator runs any more"
        )
