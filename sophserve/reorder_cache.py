"""Packed weights kept on disk, so that a quantized model is packed once. Free of torch.

A file holds what one rank packed of one checkpoint: blobs that begin at multiples of 64 bytes, then an index in JSON,
then the index's length, its checksum and a mark. It is written under a temporary name and renamed when whole; every
blob has a checksum. What does not fit the checkpoint, the device or the layout is never used, and is removed when its
successor is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sophserve.checkpoint import SHIPPED

log = logging.getLogger(__name__)

SUFFIX = ".packed"
_ALIGNMENT = 64
_FOOTER = struct.Struct("<QI4s")
_MARK = b"SOPH"
_VERSION = 1
# Bytes of each tensor that tell a checkpoint from others, and of how many tensors.
_SAMPLE, _MOST_SAMPLES = 256, 4096
# How much a thread checks at a time.
_PIECE = 64 * 2**20


@dataclass(frozen=True)
class Blob:
    """One array: the name of its element type, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Packed:
    """One packed weight: its numbers and its arrays by name."""

    numbers: Mapping[str, int]
    blobs: Mapping[str, Blob]


def cache_directory(model: Path, option: str | None) -> Path:
    """Where the packed weights of a checkpoint are kept: beside it, those of shipped models in the user's cache."""
    if option:
        root = Path(option).expanduser()
    elif model in SHIPPED.values():
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sophserve"
    else:
        root = model.resolve().parent / ".reorder_cache"
    return root / model.resolve().name


def fingerprint(model: Path, *others: object) -> str:
    """Tells the checkpoint's files and the other things from all others. Sizes and times of change are not enough:
    images and copies keep them, so the beginnings of the tensors count as well."""
    digest = hashlib.blake2b(json.dumps([_VERSION, *map(str, others)]).encode(), digest_size=8)
    for file in sorted([*model.glob("*.safetensors"), *model.glob("*.json")]):
        status = file.stat()
        digest.update(json.dumps([file.name, status.st_size, status.st_mtime_ns]).encode())
        digest.update(_samples(file) if file.suffix == ".safetensors" else file.read_bytes())
    return digest.hexdigest()


def _samples(file: Path) -> bytes:
    """The header of a safetensors file, and the first bytes of its tensors."""
    with file.open("rb") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little"))
        try:
            entries = json.loads(header)
            starts = [entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return header  # whoever reads the tensors says what is wrong with it
        samples = [header]
        for start in starts[:: -(-len(starts) // _MOST_SAMPLES) or 1]:
            samples.append(os.pread(opened.fileno(), _SAMPLE, 8 + len(header) + start))
    return b"".join(samples)


def entries(directory: Path) -> list[Path]:
    """The files of a cache directory, whole or not."""
    return sorted(path for path in directory.glob("*") if SUFFIX in path.name and path.is_file())


class CacheReader:
    """A mapped cache file. Raises ValueError for one that is torn, OSError for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _FOOTER.size:
                raise ValueError("it is too short")
            # Private and writable, for torch knows no tensors that cannot be written to.
            self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        length, checksum, mark = _FOOTER.unpack(self._view[-_FOOTER.size :])
        start = size - _FOOTER.size - length
        if mark != _MARK or start < 0 or zlib.crc32(self._view[start : start + length]) != checksum:
            raise ValueError("its index is torn")
        self._index: dict[str, Any] = json.loads(bytes(self._view[start : start + length]))
        pieces = [piece for entry in self._index.values() for blob in entry["blobs"].values() for piece in blob[3]]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            if not all(pool.map(self._is_whole, pieces)):
                raise ValueError("its checksum is wrong")

    def _is_whole(self, piece: list[int]) -> bool:
        start, size, checksum = piece
        return zlib.crc32(self._view[start : start + size]) == checksum

    def get(self, name: str) -> Packed | None:
        """What was kept under a name; its blobs are views of the mapped file."""
        if name not in self._index:
            return None
        entry = self._index[name]
        blobs = {}
        for key, (dtype, shape, start, pieces) in entry["blobs"].items():
            size = sum(piece[1] for piece in pieces)
            blobs[key] = Blob(dtype, tuple(shape), self._view[start : start + size])
        return Packed(entry["numbers"], blobs)


class CacheWriter:
    """Collects packed weights in a temporary file. A full disk costs the cache, nothing else.

    Only one process writes a cache file at a time; in the others `add` and `commit` do nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[str, Any] = {}
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = path.with_name(f".{_family(path)}lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever wrote other partial files of the family is dead, for it has not the lock.
            _remove(other for other in entries(path.parent) if other.name.endswith(".partial") and _same(other, path))
            self._file = self._partial.open("wb")
        except BlockingIOError:
            self._close()
            log.info("another process is writing %s", path)
        except OSError as error:
            self._give_up(error)

    def add(self, name: str, packed: Packed) -> None:
        if self._file is None:
            return
        try:
            blobs = {key: self._write(blob) for key, blob in packed.blobs.items()}
        except OSError as error:
            self._give_up(error)
            return
        self._index[name] = {"numbers": dict(packed.numbers), "blobs": blobs}

    def _write(self, blob: Blob) -> list[Any]:
        assert self._file is not None
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        start, pieces = self._file.tell(), []
        for at in range(0, len(blob.data), _PIECE):
            piece = blob.data[at : at + _PIECE]
            pieces.append([start + at, len(piece), zlib.crc32(piece)])
            self._file.write(piece)
        return [blob.dtype, list(blob.shape), start, pieces]

    def commit(self) -> None:
        """Put the file in place, and remove those that it replaces."""
        if self._file is None:
            return
        try:
            index = json.dumps(self._index).encode()
            self._file.write(index + _FOOTER.pack(len(index), zlib.crc32(index), _MARK))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            self._give_up(error)
            return
        _remove(other for other in entries(self._path.parent) if other != self._path and _same(other, self._path))
        log.info("packed weights are kept in %s", self._path)
        self._close()

    def _give_up(self, error: OSError) -> None:
        log.warning("packed weights are not kept, so the next start packs them again: %s", error)
        self._close()
        _remove([self._partial])

    def _close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError:  # what was buffered did not fit on the disk
            pass
        if self._lock is not None:
            self._lock.close()
        self._file = self._lock = None

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._close()
            _remove([self._partial])


def _family(path: Path) -> str:
    """What the names of a cache file and its predecessors begin with: all but the fingerprint."""
    return path.name.removesuffix(".partial").removesuffix(SUFFIX).rpartition("-")[0] + "-"


def _same(left: Path, right: Path) -> bool:
    return _family(left) == _family(right)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", path, error)
