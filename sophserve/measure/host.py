"""What of a host costs speed, as Linux tells it in /proc and /sys. Free of torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

PROC = Path("/proc")
SYS = Path("/sys")

# Drivers whose governor `powersave` still speeds up under load, where the energy preference decides.
_ACTIVE_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
_SAVING_PREFERENCES = ("power", "balance_power")


class HostState(msgspec.Struct, kw_only=True):
    """Sizes in bytes; None for what the system does not say.

    huge_pages: always, madvise or never. saves_power: what keeps the clock low, in words. busy: CPUs' worth of work
    that other processes, or other guests of the machine, did while nothing was asked of this one.
    """

    cpu: str
    swap: int
    swap_used: int
    huge_pages: str | None
    saves_power: str
    busy: float


def host_state(cpus: Sequence[int], proc: Path = PROC, sys: Path = SYS, seconds: float = 0.3) -> HostState:
    """Of a host and these of its CPUs. Takes so many seconds."""
    before = _worked(proc, cpus)
    time.sleep(seconds)
    worked = _worked(proc, cpus) - before
    memory = _fields(proc / "meminfo")
    swap = _kilobytes(memory, "SwapTotal")
    modes = _text(sys / "kernel/mm/transparent_hugepage/enabled")
    return HostState(
        cpu=_fields(proc / "cpuinfo").get("model name", os.uname().machine),
        swap=swap,
        swap_used=swap - _kilobytes(memory, "SwapFree"),
        huge_pages=modes.partition("[")[2].partition("]")[0] or None,
        saves_power=_saves_power(cpus, sys),
        busy=worked / os.sysconf("SC_CLK_TCK") / seconds if seconds else 0.0,
    )


def huge_bytes(proc: Path = PROC) -> int | None:
    """How much of this process's memory lies in huge pages; None where the system does not say."""
    fields = _fields(proc / "self/smaps_rollup")
    return _kilobytes(fields, "AnonHugePages") if "AnonHugePages" in fields else None


def _saves_power(cpus: Iterable[int], sys: Path) -> str:
    for cpu in cpus:
        folder = sys / f"devices/system/cpu/cpu{cpu}/cpufreq"
        governor, driver = _text(folder / "scaling_governor"), _text(folder / "scaling_driver")
        preference = _text(folder / "energy_performance_preference")
        if governor == "powersave" and driver not in _ACTIVE_DRIVERS:
            return "governor powersave"
        if driver in _ACTIVE_DRIVERS and preference in _SAVING_PREFERENCES:
            return f"energy preference {preference}"
    return ""


def _worked(proc: Path, cpus: Iterable[int]) -> int:
    """Ticks that CPUs did not idle so far, those among them that the machine gave to other guests."""
    lines = (line.split() for line in _text(proc / "stat").splitlines())
    ticks = {fields[0]: [int(field) for field in fields[1:9]] for fields in lines if fields[0].startswith("cpu")}
    return sum(sum(each) - each[3] - each[4] for cpu in cpus if (each := ticks.get(f"cpu{cpu}")))


def _fields(path: Path) -> dict[str, str]:
    """The first value of each `name: value`."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def _kilobytes(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0").split()[0]) * 1024


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
