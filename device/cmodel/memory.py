"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from device.control_groups import CGROUPS, PROC, groups_of

# By version of control groups: the limit, what is used, and which part of that is page cache that the kernel would
# give back.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Bytes (free, in all): the host's memory, or less where a control group (version 1 or 2) allows less."""
    meminfo = _table(proc / "meminfo", unit=1024)
    free, total = meminfo["MemAvailable:"], meminfo["MemTotal:"]
    for limit, used in _limits(proc, cgroups):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return free, total


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of the process's group and of every group above it, where there is a limit."""
    for version, folder in groups_of("memory", proc, cgroups):
        limit_file, used_file, cache_key = _FILES[version]
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
