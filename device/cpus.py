"""The CPUs that this process computes with: the cores that it may run on, what of them its control group pays for, and
which of them each thread stays on. Free of torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from device.control_groups import CGROUPS, PROC, groups_of

CPUS = Path("/sys/devices/system/cpu")


class Core(NamedTuple):
    """A physical core: its NUMA node, and its hardware threads that this process may run on, as the system counts them.

    Two hardware threads share the core's arithmetic, so a second one only adds waiting.
    """

    node: int
    cpus: tuple[int, ...]


def cores(cpus: Path = CPUS) -> list[Core]:
    """Those that this process may run on, by node. What is offline or beyond a cpuset is none of them."""
    found: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        found.setdefault(_siblings(cpus, cpu), []).append(cpu)
    return sorted(Core(_node(cpus, each[0]), tuple(each)) for each in found.values())


def quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """CPUs that the control groups of this process, nested as they are, let it use at a time; None for no limit."""
    found = [limit for version, folder in groups_of("cpu", proc, cgroups) if (limit := _limit(version, folder))]
    return min(found, default=None)


def thread_count(cpus: Path = CPUS, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """OMP_NUM_THREADS, or one for each core that this process may run on and that its quota pays for, at least in
    part."""
    return wanted_threads() or _affordable(len(cores(cpus)), quota(proc, cgroups))


def cache_bytes(cpus: Path = CPUS) -> int | None:
    """Of the last caches before memory of the CPUs that it may run on; None where the system tells nothing."""
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        caches = sorted((cpus / f"cpu{cpu}" / "cache").glob("index*"), key=lambda each: int(each.name[5:]))
        if not caches:
            return None
        try:
            who, size = ((caches[-1] / name).read_text().strip() for name in ("shared_cpu_list", "size"))
            found[who] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            return None
    return sum(found.values())


def places(threads: int, cpus: Path = CPUS) -> list[tuple[int, ...]]:
    """The CPUs that each of so many threads stays on: those of one NUMA node, so that the memory that it fills is near
    whenever it reads it again. Threads are spread over the nodes. Empty where there is one node.

    Within a node the system chooses the core: it puts threads that compute on cores of their own anyway, and a thread
    that may not leave its core stands still, and all others with it, while another process has the core.
    """
    available = cores(cpus)
    if available[0].node == available[-1].node:
        return []
    nodes = [available[thread * len(available) // threads].node for thread in range(threads)]
    return [tuple(cpu for core in available if core.node == node for cpu in core.cpus) for node in nodes]


def share_cores(rank: int, ranks: int, cpus: Path = CPUS, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
    """Keep this process, one of so many that compute together on this machine, on cores of its own, of one NUMA node if
    they divide so, and within its share of the quota. Where there are fewer cores than processes, all share all."""
    available = cores(cpus)
    each = len(available) // ranks
    if each:
        mine = available[rank * each : (rank + 1) * each]
        os.sched_setaffinity(0, {cpu for core in mine for cpu in core.cpus})
    os.environ.setdefault("OMP_NUM_THREADS", str(_affordable(each, quota(proc, cgroups), ranks)))


def wanted_threads() -> int | None:
    """What OMP_NUM_THREADS says, where it is a number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else None


def _affordable(threads: int, quota: float | None, ranks: int = 1) -> int:
    """At least one, of so many threads for each rank."""
    return max(1, threads if quota is None else min(threads, math.ceil(quota / ranks)))


def _limit(version: int, folder: Path) -> float | None:
    """Of one control group, in CPUs."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _siblings(cpus: Path, cpu: int) -> str:
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _node(cpus: Path, cpu: int) -> int:
    found = (path.name.removeprefix("node") for path in (cpus / f"cpu{cpu}").glob("node[0-9]*"))
    return min((int(number) for number in found if number.isdecimal()), default=0)
