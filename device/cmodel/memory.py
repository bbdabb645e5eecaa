"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Bytes (free, in all): the host's memory, or less where a control group (version 1 or 2) allows less."""
    meminfo = _table(proc / "meminfo", unit=1024)
    free, total = meminfo["MemAvailable:"], meminfo["MemTotal:"]
    for limit, used in _limits(proc / "self" / "cgroup", cgroups):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return free, total


def _limits(membership: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of the process's group and of every group above it, where there is a limit.

    Page cache that the kernel would give back does not count as used. The process may see its group mounted
    as the root (a container), so a folder that is not there is passed over.
    """
    try:
        entries = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers == "":
            root, limit_file, used_file, cache_key = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit_file, used_file = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_key = "total_inactive_file"
        else:
            continue
        relative = PurePosixPath(path.lstrip("/"))
        for folder in (root / relative, *(root / parent for parent in relative.parents)):
            try:
                limit = (folder / limit_file).read_text().strip()
                used = int((folder / used_file).read_text())
                cache = _table(folder / "memory.stat").get(cache_key, 0)
            except (OSError, ValueError):
                continue
            if limit != "max":
                yield int(limit), max(0, used - cache)


def _table(path: Path, unit: int = 1) -> dict[str, int]:
    return {fields[0]: int(fields[1]) * unit for line in path.read_text().splitlines() if (fields := line.split())}
