"""What a launcher, such as torchrun or mpirun, tells the processes that it starts: which of how many one is, and where
rank 0 is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError

# As torch has it, where the launcher names none.
MASTER_PORT = 29500
# Where all processes of a group must have the same secret.
SECRET = "SOPHSERVE_GROUP_SECRET"

# Rank, size, local rank, local size. Open MPI's win: it may have been started where the others are set.
_NAMES = (
    (
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)
# What tells one launch from another.
_IDENTITIES = ("OMPI_MCA_ess_base_jobid", "TORCHELASTIC_RUN_ID")


class Launch(msgspec.Struct, frozen=True):
    """One of `size` launched processes, `local_size` of them on this host. address, port: of rank 0, where it is to
    take connections from other hosts; an address of "" is not known. key: what all processes of the launch know."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    key: bytes

    @property
    def within_one_host(self) -> bool:
        return self.local_size == self.size


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says; None for a process that stands alone. Raises ConfigError."""
    names = next((names for names in _NAMES if all(environment.get(name) for name in names[:2])), None)
    if names is None:
        return None
    rank, size, local_rank, local_size = names
    numbers = {
        "rank": _number(environment, rank, 0),
        "size": _number(environment, size, 1),
        "local_rank": _number(environment, local_rank, 0),
        "local_size": _number(environment, local_size, 1),
    }
    if numbers["size"] <= 1:
        return None
    if not numbers["local_rank"] < numbers["local_size"] <= numbers["size"] > numbers["rank"]:
        values = ", ".join(
            f"{name}={environment[name]}" for name in (rank, size, local_rank, local_size) if name in environment
        )
        raise ConfigError(f"the launcher's environment cannot be right: {values}")
    identity = next((environment[name] for name in _IDENTITIES if environment.get(name)), "")
    return Launch(
        **numbers,
        address=environment.get("MASTER_ADDR", ""),
        port=_number(environment, "MASTER_PORT", MASTER_PORT) + 1,
        key=f"{environment.get(SECRET, '')}\0{identity}".encode(),
    )


def ranks_here(launch: Launch, config: EngineConfig) -> int:
    """How many ranks this host holds. tensor_parallel_size becomes the number of processes for each stage where it was
    left at 1. Raises ConfigError."""
    if config.tensor_parallel_size == 1:
        config.tensor_parallel_size = max(1, launch.size // config.pipeline_parallel_size)
    each, rest = divmod(config.world_size, launch.size)
    if rest:
        raise ConfigError(
            f"{sizes_in_words(config)}, but {launch.size} processes were launched; "
            "launch as many, or a number that divides it, or leave the option out"
        )
    return each * launch.local_size


def sizes_in_words(config: EngineConfig) -> str:
    """How many ranks the options ask for."""
    tensor, stages = config.tensor_parallel_size, config.pipeline_parallel_size
    sizes = f"--tensor-parallel-size is {tensor}"
    return sizes if stages == 1 else f"{sizes} and --pipeline-parallel-size {stages}, which makes {tensor * stages}"


def forget_defaults() -> None:
    """Take back what launchers give each process whose user says nothing of it, since this one starts processes for
    all devices of its host: torchrun one thread, Open MPI one core or one socket."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]
    if "OMPI_MCA_orte_bound_at_launch" in os.environ and "OMPI_MCA_hwloc_base_binding_policy" not in os.environ:
        os.sched_setaffinity(0, _cores_of_launcher())


def _cores_of_launcher() -> set[int]:
    """The cores of the nearest process above this one that may run on others than it: there may be shells between."""
    own, cores, process = os.sched_getaffinity(0), os.sched_getaffinity(0), os.getppid()
    while cores == own and process > 1:
        cores = os.sched_getaffinity(process)
        status = Path(f"/proc/{process}/status").read_text()
        process = int(status.partition("\nPPid:")[2].split(maxsplit=1)[0])
    return own | cores


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}; it must be a whole number")
    return int(text)
