"""What is kept below --batch-dir.

files/ID         the contents of a file          files/ID.json      what is told of it, there once it is whole
batches/ID.json  a batch and how far it is       batches/ID/        while it is not done:
    lock         held by the server that runs it     cancel         there once it is to be cancelled
    input.jsonl  a link to its input                 output.jsonl, errors.jsonl    what is answered so far
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from aiohttp import web
from msgspec import UNSET

from sophserve.api.batches.answer_types import Batch, File
from sophserve.api.batches.shelf import Shelf, new_id
from sophserve.api.http.errors import ApiError
from sophserve.config import ServerConfig
from sophserve.errors import ConfigError
from sophserve.state_folder import state_folder

# Bytes of an upload that are written at once.
_PIECE = 1 << 18
# Seconds after which what a killed server left half made is removed.
_STALE = 86_400


class KeptFile(msgspec.Struct, kw_only=True):
    """See Kept."""

    owner: str
    file: File

    @property
    def id(self) -> str:
        return self.file.id

    @property
    def gone(self) -> bool:
        return self.file.expires_at is not UNSET and self.file.expires_at <= time.time()


class KeptBatch(msgspec.Struct, kw_only=True):
    """See Kept. output_id, error_id: of the files to come; output_seconds: for which these are kept. ending: the status
    that it ends with, once all its lines are answered and the files are all that is missing."""

    owner: str
    batch: Batch
    output_id: str
    error_id: str
    output_seconds: int | None = None
    ending: str | None = None

    @property
    def id(self) -> str:
        return self.batch.id

    @property
    def gone(self) -> bool:
        return False

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self.batch.status in ("failed", "completed", "expired", "cancelled")


class BatchStore:
    """All files and batches. Its methods are for threads, if they are not asynchronous."""

    def __init__(self, config: ServerConfig) -> None:
        self.root = Path(config.batch_dir) if config.batch_dir else state_folder() / "batches"
        self.files = Shelf(self.root / "files", KeptFile, "file-", "file")
        self.batches = Shelf(self.root / "batches", KeptBatch, "batch_", "batch")
        self._config = config
        self._arriving = 0  # bytes of uploads that are not files yet

    def prepare(self) -> None:
        """Make the folders. Raises ConfigError where they cannot be used."""
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.files.folder, self.batches.folder):
                folder.mkdir(exist_ok=True, mode=0o700)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot keep files in {self.root}: {reason}; choose another --batch-dir") from None

    def content(self, identity: str) -> Path:
        """The contents of a file whose id is one."""
        return self.files.folder / identity

    def work(self, identity: str) -> Path:
        """The folder of a batch that is not done."""
        return self.batches.folder / identity

    def add(self, path: Path, file: File, owner: str) -> None:
        """Let what is at a path be a file. May be repeated where it was cut short. Raises OSError."""
        if path.exists():
            path.replace(self.content(file.id))
        self.files.put(KeptFile(owner=owner, file=file))

    def delete(self, identity: str) -> None:
        """Forget a file."""
        self.files.remove(identity)
        self.content(identity).unlink(missing_ok=True)

    def link_input(self, identity: str, input_id: str) -> None:
        """Give a new batch its input, which then may be deleted. Raises OSError."""
        folder = self.work(identity)
        folder.mkdir(mode=0o700)
        source, target = self.content(input_id), folder / "input.jsonl"
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:  # the file system has no links
            shutil.copyfile(source, target)

    def cancel(self, identity: str) -> None:
        """Tell whoever runs a batch that it is to end. Raises FileNotFoundError if it has."""
        with contextlib.suppress(FileExistsError):
            (self.work(identity) / "cancel").touch(exist_ok=False)

    def cancelled_at(self, identity: str) -> int | None:
        """Since when a batch is to end."""
        try:
            return int((self.work(identity) / "cancel").stat().st_mtime)
        except FileNotFoundError:
            return None

    def sweep(self) -> None:
        """Delete what is over its time."""
        for identity in self.files.gone():
            self.delete(identity)
        known = set(self.files.ids())
        for path in self.files.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                named = path.name.removesuffix(".json") in known
                if not named and time.time() - path.stat().st_ctime > _STALE:
                    path.unlink()
        for path in self.batches.folder.glob("*/"):
            with contextlib.suppress(FileNotFoundError):
                kept = self.batches.find(path.name)
                stale = not path.with_suffix(".json").exists() and time.time() - path.stat().st_ctime > _STALE
                if stale or (kept is not None and kept.done):
                    shutil.rmtree(path, ignore_errors=True)

    def used(self) -> int:
        """Bytes of all that is kept, uploads aside."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(os.path.join(folder, name))  # noqa: PTH118, PTH116 - of many files
                    total += 0 if name.endswith(".upload") else status.st_size // max(1, status.st_nlink)
        return total

    @asynccontextmanager
    async def arrival(self) -> AsyncIterator[Arrival]:
        """Room for a file that is being uploaded; what does not become one is removed. Raises ApiError."""
        used = await asyncio.to_thread(self._prepared_use)
        path = self.files.folder / f".{secrets.token_hex(8)}.upload"
        arrival = Arrival(self, path, used)
        try:
            with path.open("xb") as arrival.file:
                yield arrival
        finally:
            self._arriving -= arrival.size
            await asyncio.to_thread(path.unlink, True)

    def _prepared_use(self) -> int:
        try:
            self.prepare()
        except ConfigError as error:
            raise ApiError(404, str(error), code="no_batch_dir") from None
        return self.used()

    def admit(self, size: int, arrived: int, used: int) -> None:
        """Count bytes of an upload that has so many already. Raises ApiError where they are too many."""
        config = self._config
        if arrived + size > config.file_bytes:
            raise too_large(config)
        if used + self._arriving + size > config.batch_storage_bytes:
            raise ApiError(
                413,
                f"the files of this server take all of the {config.batch_storage} that they may; delete some, or raise "
                "--batch-storage",
                code="storage_full",
                headers={"Connection": "close"},
            )
        self._arriving += size


BATCH_STORE = web.AppKey("batch_store", BatchStore)


def too_large(config: ServerConfig) -> ApiError:
    """Why a file is refused that has more than --max-file-size."""
    return ApiError(
        413,
        f"the file is larger than {config.max_file_size}; split it into several, or raise --max-file-size",
        code="file_too_large",
        param="file",
        headers={"Connection": "close"},
    )


class Arrival:
    """A file on its way in."""

    file: BinaryIO

    def __init__(self, store: BatchStore, path: Path, used: int) -> None:
        self.size = 0
        self._store = store
        self._path = path
        self._used = used
        self._pieces: list[bytes] = []
        self._waiting = 0

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises ApiError where they are too many."""
        self._store.admit(len(data), self.size, self._used)
        self.size += len(data)
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting >= _PIECE:
            await self._flush()

    async def keep(self, name: str, owner: str, seconds: int) -> File:
        """Let what came be a file for batches. Raises ApiError."""
        await self._flush()
        now = int(time.time())
        file = File(
            id=new_id(self._store.files.prefix),
            bytes=self.size,
            created_at=now,
            filename=name,
            purpose="batch",
            expires_at=now + seconds,
        )
        with _storage_errors():
            await asyncio.to_thread(self._finish, file, owner)
        return file

    async def _flush(self) -> None:
        data, self._pieces, self._waiting = b"".join(self._pieces), [], 0
        with _storage_errors():
            await asyncio.to_thread(self.file.write, data)

    def _finish(self, file: File, owner: str) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self._store.add(self._path, file, owner)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the file cannot be kept: {error.strerror}; see to --batch-dir"
        raise ApiError(507, problem, code="storage_failed", headers={"Connection": "close"}) from None
