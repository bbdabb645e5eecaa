"""What is read of launchers' environments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError
from sophserve.launch import forget_defaults, ranks_here, read_launch

TORCHRUN = {
    "RANK": "2",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "x",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_who_is_not_launched_stands_alone() -> None:
    assert read_launch({}) is None
    assert read_launch({"RANK": "0"}) is None
    assert read_launch({"WORLD_SIZE": "8"}) is None
    assert read_launch({"RANK": "0", "WORLD_SIZE": "1"}) is None


def test_torchruns_names() -> None:
    launch = read_launch(TORCHRUN)
    assert launch
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (2, 4, 0, 2)
    # torchrun's own store holds MASTER_PORT.
    assert (launch.address, launch.port) == ("10.0.0.1", 29401)
    assert not launch.within_one_host


def test_open_mpis_names_win() -> None:
    launch = read_launch(TORCHRUN | MPIRUN)
    assert launch
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (1, 2, 1, 2)
    assert launch.within_one_host


def test_one_process_for_each_host_without_a_launcher() -> None:
    launch = read_launch({"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "a"})
    assert launch
    assert (launch.local_rank, launch.local_size, launch.port) == (0, 1, 29501)


def test_keys_tell_launches_and_secrets_apart() -> None:
    environments = (
        TORCHRUN,
        TORCHRUN | {"TORCHELASTIC_RUN_ID": "y"},
        TORCHRUN | {"SOPHSERVE_GROUP_SECRET": "s"},
    )
    keys = {launch.key for launch in map(read_launch, environments) if launch}
    assert len(keys) == 3


@pytest.mark.parametrize(
    "wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"RANK": "one"}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "5"}]
)
def test_what_cannot_be_right(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="environment"):
        read_launch(TORCHRUN | wrong)


@pytest.mark.parametrize(("given", "size", "here"), [(1, 4, 2), (4, 4, 2), (8, 8, 4)])
def test_ranks_of_a_host(given: int, size: int, here: int) -> None:
    launch, config = read_launch(TORCHRUN), EngineConfig(model="x", tensor_parallel_size=given)
    assert launch
    assert ranks_here(launch, config) == here
    assert config.tensor_parallel_size == size


@pytest.mark.parametrize(("tensor", "stages", "size", "here"), [(1, 2, 2, 2), (2, 2, 2, 2), (1, 4, 1, 2), (2, 4, 2, 4)])
def test_ranks_of_stages(tensor: int, stages: int, size: int, here: int) -> None:
    launch = read_launch(TORCHRUN)
    assert launch
    config = EngineConfig(model="x", tensor_parallel_size=tensor, pipeline_parallel_size=stages)
    assert ranks_here(launch, config) == here
    assert config.tensor_parallel_size == size


def test_stages_that_processes_cannot_share() -> None:
    launch = read_launch(TORCHRUN)
    assert launch
    with pytest.raises(ConfigError, match="is 1 and --pipeline-parallel-size 3, which makes 3, but 4 processes were"):
        ranks_here(launch, EngineConfig(model="x", pipeline_parallel_size=3))


def test_ranks_that_processes_cannot_share() -> None:
    launch = read_launch(TORCHRUN)
    assert launch
    with pytest.raises(ConfigError, match="--tensor-parallel-size is 6, but 4 processes were launched; launch as many"):
        ranks_here(launch, EngineConfig(model="x", tensor_parallel_size=6))


def test_torchruns_one_thread_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for identity, threads, left in ((None, "1", "1"), ("x", "1", None), ("x", "3", "3")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if identity:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", identity)
        forget_defaults()
        assert os.environ.get("OMP_NUM_THREADS") == left


# A process on one core, under a shell on one core, as Open MPI's default is.
BOUND = f"""exec taskset -c {min(os.sched_getaffinity(0))} sh -c '{sys.executable} -c "
import os
from sophserve.launch import forget_defaults
forget_defaults()
print(len(os.sched_getaffinity(0)))"; true'"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is one core")
@pytest.mark.parametrize(
    ("environment", "all_cores"),
    [
        ({"OMPI_MCA_orte_bound_at_launch": "1"}, True),
        ({"OMPI_MCA_orte_bound_at_launch": "1", "OMPI_MCA_hwloc_base_binding_policy": "core"}, False),
        ({}, False),
    ],
)
def test_open_mpis_one_core_is_not_the_users(environment: dict[str, str], all_cores: bool) -> None:
    ran = subprocess.run(["sh", "-c", f"({BOUND})"], env=os.environ | environment, capture_output=True, text=True)
    assert ran.stdout == f"{len(os.sched_getaffinity(0)) if all_cores else 1}\n", ran.stderr
