"""Profiles: how one is asked for, and what its records look like on disk.

A profile leaves one folder for each rank, `cdm_profile_data_dev<ID>-<IDX>`: the device's number, and a number that no
earlier profile in the directory has. In it the first line of `records.jsonl` is a `Header`, and each further one a
`Step`. Times are nanoseconds of the host's monotonic clock, which all ranks of a machine share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

FOLDER = "cdm_profile_data_dev"
RECORDS = "records.jsonl"
FORMAT = 1


class ProfileOptions(msgspec.Struct, kw_only=True):
    """max_record_num: commands after which no more are recorded. mode: 0 counts and sums the commands of a step by
    operator, 1 records each, 2 records each with its parameters."""

    max_record_num: Annotated[int, Meta(ge=1, le=100_000_000)] = 1_000_000
    mode: Annotated[int, Meta(ge=0, le=2)] = 1


class Header(msgspec.Struct, kw_only=True):
    """Whose records these are. started: seconds since 1970 at the monotonic time `start`.

    The limits are the most that the device's `linear` was seen to do when the profile began, in bytes read and in
    multiplications and additions, or None.
    """

    sophserve_profile: int = FORMAT
    model: str
    device: str
    device_id: int
    rank: int
    world_size: int
    mode: int
    max_record_num: int
    started: float
    start: int
    bytes_per_second: Annotated[float, Meta(gt=0)] | None = None
    operations_per_second: Annotated[float, Meta(gt=0)] | None = None


class Command(msgspec.Struct, array_like=True):
    """One command; see device.interface.CommandRecord. All integers are 0 or more."""

    operator: str
    start: int
    duration: Annotated[int, Meta(ge=0)]
    bytes: Annotated[int, Meta(ge=0)]
    operations: Annotated[int, Meta(ge=0)]
    detail: str = ""


class Sums(msgspec.Struct, array_like=True):
    """What the commands of one operator come to."""

    count: int = 0
    duration: int = 0
    bytes: int = 0
    operations: int = 0


class Step(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step of the model: the sequences and tokens that it computed, and its commands.

    commands: None once max_record_num is reached, and in mode 0, where `sums` has them by operator. memory: bytes of
    the device in use and in all, where it was looked at.
    """

    step: int
    start: int
    duration: Annotated[int, Meta(ge=0)]
    sequences: int
    tokens: int
    commands: list[Command] | None = None
    sums: dict[str, Sums] | None = None
    memory: tuple[int, int] | None = None


def next_index(directory: Path) -> int:
    """The number for the folders of the next profile in a directory."""
    found = (path.name.removeprefix(FOLDER).partition("-")[2] for path in directory.glob(f"{FOLDER}*"))
    return max((int(index) + 1 for index in found if index.isdecimal()), default=0)
