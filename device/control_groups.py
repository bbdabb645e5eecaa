"""The control groups that this process is in, of version 1 or 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def groups_of(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[int, Path]]:
    """The version and the folder of the process's group, and of every group above it, in which a controller may have
    files.

    The process may see its group mounted as the root (a container), so some of the folders may not be there.
    """
    try:
        entries = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        entries = [["0", "", "/"]]
    for _, controllers, path in entries:
        if controllers and controller not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        root = cgroups / controller if controllers else cgroups
        relative = PurePosixPath(path.lstrip("/"))
        for folder in (relative, *relative.parents):
            yield version, root / folder
