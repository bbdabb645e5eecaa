"""How many threads to compute with."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")


def thread_count(cpus: Path = CPUS, cgroups: Path = CGROUPS) -> int:
    """OMP_NUM_THREADS, or one for each core that this process may run on and that its CPU quota pays for.

    Two hardware threads of a core share its arithmetic, so a second one only adds waiting.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    cores = {_core(cpus, cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota(cgroups)))


def _core(cpus: Path, cpu: int) -> str:
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cgroups: Path) -> int:
    """CPUs that the control group, as a container sees it, may use at a time."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return 1 << 16
    if quota == "max" or int(quota) <= 0:
        return 1 << 16
    return max(1, math.ceil(int(quota) / int(period)))
