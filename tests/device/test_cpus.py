"""Which CPUs a process computes with, on machines that are made up of files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from device.cpus import Core, cache_bytes, cores, places, quota, share_cores, thread_count


class Machine:
    """The folders of a machine's CPUs, processes and control groups, and the CPUs that this process may run on."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpus, self.proc, self.cgroups = root / "cpu", root / "proc", root / "cgroup"
        self.allowed: set[int] = set()
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.allowed))
        monkeypatch.setattr(os, "sched_setaffinity", self._restrict)

    def _restrict(self, _: int, wanted: set[int]) -> None:
        assert wanted and wanted <= self.allowed
        self.allowed = wanted

    def cores(self, siblings: Sequence[Sequence[int]], node: int = 0) -> None:
        """Add cores of these hardware threads, on a node; one may run on all of them."""
        for core in siblings:
            for cpu in core:
                folder = self.cpus / f"cpu{cpu}"
                (folder / "topology").mkdir(parents=True)
                (folder / f"node{node}").mkdir()
                (folder / "topology" / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
            self.allowed |= set(core)

    def groups(self, membership: str, files: Mapping[str, str]) -> None:
        """Put this process into control groups."""
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text(membership)
        for name, text in files.items():
            path = self.cgroups / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def threads(self) -> int:
        return thread_count(self.cpus, self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def two_sockets(machine: Machine) -> Machine:
    """Each of four cores with two hardware threads, numbered as Linux does: the second ones after all first ones."""
    machine.cores([(cpu, cpu + 8) for cpu in range(4)], node=0)
    machine.cores([(cpu, cpu + 8) for cpu in range(4, 8)], node=1)
    return machine


def test_one_thread_for_each_core(two_sockets: Machine) -> None:
    assert two_sockets.threads() == 8
    assert cores(two_sockets.cpus)[3:5] == [Core(0, (3, 11)), Core(1, (4, 12))]


def test_cores_of_two_kinds(machine: Machine) -> None:
    machine.cores([(0, 1), (2, 3)])  # with hardware threads side by side
    machine.cores([(4,), (5,), (6,)])
    assert machine.threads() == 5


def test_offline_cpus_are_none(two_sockets: Machine) -> None:
    # The system tells nothing of their cores, and leaves them out of what a process may run on.
    for cpu in (2, 10, 12):
        two_sockets.allowed.discard(cpu)
        (two_sockets.cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").unlink()
    assert two_sockets.threads() == 7
    assert Core(1, (4,)) in cores(two_sockets.cpus)


def test_a_cpuset_of_three(two_sockets: Machine) -> None:
    two_sockets.allowed = {1, 9, 6}  # 1 and 9 are one core
    assert two_sockets.threads() == 2
    two_sockets.allowed = {1, 2, 6}
    assert two_sockets.threads() == 3


def test_without_files_each_cpu_is_a_core(machine: Machine) -> None:
    machine.allowed = {0, 1, 5}
    assert machine.threads() == 3


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("5,2", 5), ("", 8), ("0", 8), ("many", 8)])
def test_the_environment_decides(
    two_sockets: Machine, monkeypatch: pytest.MonkeyPatch, value: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert two_sockets.threads() == expected


@pytest.mark.parametrize(
    ("membership", "files", "limit", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 0.1, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2.5, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 50000\n", "a/cpu.max": "150000 100000\n"}, 1.5, 2),
        ("0::/x\n", {"cpu.max": "300000 100000\n"}, 3, 3),  # a container, which sees its group as the root
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, 8),
        (
            "9:memory:/m\n4:cpu,cpuacct:/docker/1\n",
            {"cpu/docker/1/cpu.cfs_quota_us": "150000\n", "cpu/docker/1/cpu.cfs_period_us": "100000\n"},
            1.5,
            2,
        ),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
            2,
        ),
        ("0::/\n", {"cpu.max": "unreadable\n"}, None, 8),
    ],
)
def test_threads_stay_within_the_quota(
    two_sockets: Machine, membership: str, files: dict[str, str], limit: float | None, expected: int
) -> None:
    two_sockets.groups(membership, files)
    assert quota(two_sockets.proc, two_sockets.cgroups) == limit
    assert two_sockets.threads() == expected


def test_processes_share_the_cores_out(two_sockets: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    everything, found = set(two_sockets.allowed), []
    for rank in range(2):
        two_sockets.allowed = set(everything)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        share_cores(rank, 2, two_sockets.cpus, two_sockets.proc, two_sockets.cgroups)
        assert two_sockets.threads() == 4
        found.append(two_sockets.allowed)
    assert found == [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]  # a socket each


def test_processes_share_the_quota_out(two_sockets: Machine) -> None:
    two_sockets.groups("0::/\n", {"cpu.max": "400000 100000\n"})
    share_cores(1, 2, two_sockets.cpus, two_sockets.proc, two_sockets.cgroups)
    assert two_sockets.threads() == 2


def test_more_processes_than_cores(machine: Machine) -> None:
    machine.cores([(0, 2), (1, 3)])
    share_cores(2, 4, machine.cpus, machine.proc, machine.cgroups)
    assert machine.allowed == {0, 1, 2, 3} and machine.threads() == 1


def test_threads_stay_on_nodes(two_sockets: Machine) -> None:
    first, second = (0, 8, 1, 9, 2, 10, 3, 11), (4, 12, 5, 13, 6, 14, 7, 15)
    assert places(8, two_sockets.cpus) == [first] * 4 + [second] * 4
    assert places(3, two_sockets.cpus) == [first, first, second]
    assert places(1, two_sockets.cpus) == [first]
    two_sockets.allowed = {0, 1, 4, 12}
    assert places(3, two_sockets.cpus) == [(0, 1), (0, 1), (4, 12)]


def test_on_one_node_threads_go_where_there_is_room(two_sockets: Machine) -> None:
    two_sockets.allowed = {0, 1, 8}
    assert places(2, two_sockets.cpus) == []


def test_the_last_caches_of_the_cpus_that_it_may_run_on(machine: Machine) -> None:
    machine.cores([(0,), (1,), (2,), (3,)])
    assert cache_bytes(machine.cpus) is None

    def cache(cpu: int, level: int, size: str, shared: str) -> None:
        folder = machine.cpus / f"cpu{cpu}" / "cache" / f"index{level}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
        (folder / "shared_cpu_list").write_text(f"{shared}\n")

    for cpu in range(4):
        cache(cpu, 2, "512K", str(cpu))
        cache(cpu, 3, "32M", "0-1" if cpu < 2 else "2-3")
    assert cache_bytes(machine.cpus) == 64 << 20
    machine.allowed = {0, 1}
    assert cache_bytes(machine.cpus) == 32 << 20
    (machine.cpus / "cpu1" / "cache" / "index3" / "size").write_text("much")
    assert cache_bytes(machine.cpus) is None
