"""Records on disk: a JSON file each, replaced as a whole, in a folder that several servers may share."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record

log = logging.getLogger(__name__)


class Kept(Protocol):
    """A record. owner: whose it is, see `owner`; empty for everybody's."""

    owner: str

    @property
    def id(self) -> str:
        """The name of its file."""

    @property
    def gone(self) -> bool:
        """Whether its time is over."""


R = TypeVar("R", bound=Kept)


def owner() -> str:
    """Who makes the running request: the beginning of the digest of the API key, as names may pass to another key;
    empty where there are no keys."""
    account = current_record.get().account
    return account.key.digest.hex()[:16] if account else ""


def new_id(prefix: str) -> str:
    """An id that nobody can guess. Ids are in the order of their time, to a microsecond."""
    return f"{prefix}{time.time_ns() // 1000:014x}{secrets.token_hex(8)}"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, whatever happens. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def lock(path: Path) -> int | None:
    """The descriptor of a file that nobody else can lock while it is open, in this process or another, which may be
    killed; None if somebody has it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Shelf(Generic[R]):
    """The records of one kind. prefix: what their ids begin with; called: what messages call one. Its methods read
    and write files: they are for threads."""

    def __init__(self, folder: Path, kind: type[R], prefix: str, called: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self._called = called
        self._id = re.compile(re.escape(prefix) + "[0-9a-f]{30}")
        self._decode: Callable[[bytes], R] = msgspec.json.Decoder(kind).decode

    def put(self, record: R) -> None:
        """Write a record, or replace it. Raises OSError."""
        replace_file(self._file(record.id), msgspec.json.encode(record))

    def get(self, identity: str) -> R:
        """A record that the running request may see. Raises ApiError where there is none such."""
        record = self.find(identity)
        if record is None or not _may_see(record):
            raise self.missing(identity)
        return record

    def find(self, identity: str) -> R | None:
        """A record, whoever asks; None for an id that is none, or where nothing is."""
        record = self._read(identity) if self._id.fullmatch(identity) else None
        return None if record is None or record.gone else record

    def gone(self) -> list[str]:
        """The ids of the records whose time is over."""
        return [identity for identity in self.ids() if (record := self._read(identity)) is not None and record.gone]

    def remove(self, identity: str) -> None:
        """Forget a record."""
        self._file(identity).unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """All, oldest first."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # an upload says what is the matter
            return []
        ids = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(filter(self._id.fullmatch, ids))

    def page(
        self, after: str | None, limit: int, newest_first: bool, wanted: Callable[[R], bool] = lambda _: True
    ) -> tuple[list[R], bool]:
        """Up to `limit` of the records that the running request may see, behind the one of id `after`, and whether
        there are more. Raises ApiError for an `after` that is no id."""
        if after is not None and not self._id.fullmatch(after):
            raise self.missing(after)
        found: list[R] = []
        for record in filter(wanted, self._after(after, newest_first)):
            if len(found) == limit:
                return found, True
            found.append(record)
        return found, False

    def missing(self, identity: str) -> ApiError:
        """What says that there is no such record."""
        return ApiError(404, f"there is no {self._called} {identity[:64]!r}", code="not_found", param="id")

    def _after(self, after: str | None, newest_first: bool) -> Iterator[R]:
        for identity in sorted(self.ids(), reverse=newest_first):
            if after is None or (identity < after if newest_first else identity > after):
                record = self.find(identity)
                if record is not None and _may_see(record):
                    yield record

    def _read(self, identity: str) -> R | None:
        try:
            return self._decode(self._file(identity).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("cannot read %s: %s", self._file(identity), error)
            return None

    def _file(self, identity: str) -> Path:
        return self.folder / f"{identity}.json"


def _may_see(record: Kept) -> bool:
    return not current_record.get().account or record.owner in ("", owner())
