"""Reads the folders of a profile back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sophserve.errors import ConfigError
from sophserve.profile_format import FOLDER, FORMAT, RECORDS, Header, Step, Sums


@dataclass
class RankProfile:
    """One rank's records. torn: its worker was killed while it wrote the last line, which is left out."""

    folder: Path
    header: Header
    steps: list[Step]
    torn: bool

    def sums(self) -> dict[str, Sums]:
        """What the commands of each operator come to."""
        found: dict[str, Sums] = defaultdict(Sums)
        for step in self.steps:
            own = [(each.operator, Sums(1, each.duration, each.bytes, each.operations)) for each in step.commands or []]
            for operator, sums in [*(step.sums or {}).items(), *own]:
                total = found[operator]
                total.count += sums.count
                total.duration += sums.duration
                total.bytes += sums.bytes
                total.operations += sums.operations
        return dict(found)


def read_profile(directory: Path) -> list[RankProfile]:
    """The profile of one rank's folder, or the latest of a directory with such folders, by rank. Raises ConfigError."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory; give one that holds folders {FOLDER}*, or one of these")
    if (directory / RECORDS).exists() or directory.name.startswith(FOLDER):
        return [_read_rank(directory)]
    runs: dict[int, list[Path]] = defaultdict(list)
    for folder in directory.glob(f"{FOLDER}*-*"):
        index = folder.name.rpartition("-")[2]
        if index.isdecimal() and folder.is_dir():
            runs[int(index)].append(folder)
    if not runs:
        raise ConfigError(f"{directory} holds no folder {FOLDER}*; a profile leaves them where the server was started")
    ranks = [_read_rank(folder) for folder in runs[max(runs)]]
    return sorted(ranks, key=lambda rank: rank.header.rank)


def _read_rank(folder: Path) -> RankProfile:
    path = folder / RECORDS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder} has no {RECORDS}: it comes from the chip's own profiler; draw it with "
                f"bigTpuProfile {folder} OUT"
            ) from None
        raise ConfigError(f"{folder} is empty: nothing was recorded in it") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    torn = lines.pop() != b""
    if not lines:
        raise ConfigError(f"{path} has not one whole line: its worker was killed when the profile began")
    header = _header(path, lines[0])
    steps = list(_steps(path, lines[1:]))
    if not steps:
        raise ConfigError(f"{path} has no steps: nothing was asked of the model while it was recorded")
    return RankProfile(folder, header, steps, torn)


def _header(path: Path, line: bytes) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not begin as records of sophserve do: {error}") from None
    if header.sophserve_profile != FORMAT:
        raise ConfigError(
            f"{path} has format {header.sophserve_profile}, this sophserve reads {FORMAT}; use the one that wrote it"
        )
    return header


def _steps(path: Path, lines: list[bytes]) -> Iterator[Step]:
    decode = msgspec.json.Decoder(Step).decode
    for number, line in enumerate(lines, start=2):
        try:
            yield decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}, line {number} is damaged ({error}); cut the file before it to see the rest"
            ) from None
