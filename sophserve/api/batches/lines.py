"""The lines of an input: one at a time, however long the file or a line is, each checked as far as can be."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from sophserve.api.http.upload import MAX_BODY_BYTES
from sophserve.json_size import JsonTooLarge, check_json

LONGEST_LINE = MAX_BODY_BYTES
"""Bytes, as a request over HTTP may have."""
_LONGEST_ID = 512
_CHUNK = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class LineError(NamedTuple):
    """Why a line has no answer of its endpoint."""

    code: str
    message: str


class Line(NamedTuple):
    """A request. number: of its line in the file, from 1 on; custom_id: None where it cannot be read; wrong: why it
    cannot be asked."""

    number: int
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    wrong: LineError | None = None


class _Wrong(Exception):
    """What is the matter with a line."""


def count_lines(path: Path) -> int:
    """How many lines are not blank. Raises OSError."""
    count, blank = 0, True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            first, *others = chunk.split(b"\n")
            blank = blank and not first.strip()
            for part in others:
                count += not blank
                blank = not part.strip()
    return count + (not blank)


class LineReader:
    """Reads the lines of a file. endpoints: which paths a line may name."""

    def __init__(self, file: BinaryIO, endpoints: Collection[str]) -> None:
        self._file = file
        self._endpoints = endpoints
        self._number = 0
        self._seen: set[bytes] = set()

    def next(self) -> Line | None:
        """The next line that is not blank; None at the end. Raises OSError."""
        while data := self._file.readline(LONGEST_LINE + 1):
            self._number += 1
            if self._number == 1:
                data = data.removeprefix(_BYTE_ORDER_MARK)
            if len(data) > LONGEST_LINE and not data.endswith(b"\n"):
                self._skip_rest()
                message = f"the line is longer than {LONGEST_LINE >> 20} MiB; shorten the request"
                return Line(self._number, None, wrong=LineError("line_too_long", message))
            if data.strip():
                return self._checked(data)
        return None

    def _skip_rest(self) -> None:
        while (rest := self._file.readline(_CHUNK)) and not rest.endswith(b"\n"):
            pass

    def _checked(self, data: bytes) -> Line:
        custom_id = None
        try:
            with _as_wrong("invalid_json_line"):
                check_json(data)
                fields = _fields(data)
            custom_id = self._custom_id(fields)
            url = _text(fields, "url", "invalid_url")
            if url not in self._endpoints:
                raise _Wrong("invalid_url", f"url must be {' or '.join(self._endpoints)}, got {url[:64]!r}")
            if (method := _text(fields, "method", "invalid_method")) != "POST":
                raise _Wrong("invalid_method", f"method must be POST, got {method[:64]!r}")
            body = bytes(fields.get("body", b""))
            if not body.lstrip().startswith(b"{"):
                raise _Wrong("invalid_body", "body must be the JSON object of the request")
        except _Wrong as wrong:
            code, message = wrong.args
            return Line(self._number, custom_id, wrong=LineError(code, message))
        return Line(self._number, custom_id, url, body)

    def _custom_id(self, fields: dict[str, msgspec.Raw]) -> str:
        custom_id = _text(fields, "custom_id", "invalid_custom_id")
        if not 0 < len(custom_id) <= _LONGEST_ID:
            message = f"custom_id must have 1 to {_LONGEST_ID} characters, got {len(custom_id)}"
            raise _Wrong("invalid_custom_id", message)
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            message = f"the custom_id {custom_id[:64]!r} is that of a line before; give each line one of its own"
            raise _Wrong("duplicate_custom_id", message)
        self._seen.add(digest)
        return custom_id


def _text(fields: dict[str, msgspec.Raw], name: str, code: str) -> str:
    if name not in fields:
        raise _Wrong(code, f"{name} is missing; a line has custom_id, method, url and body")
    with _as_wrong(code, f"{name} must be a text"):
        return msgspec.json.decode(fields[name], type=str)


@contextmanager
def _as_wrong(code: str, message: str | None = None) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise _Wrong(code, f"the line is not UTF-8: {error.reason} at byte {error.start}") from None
    except JsonTooLarge as error:
        raise _Wrong(code, f"the line {error}") from None
    except RecursionError:
        raise _Wrong(code, "the line is nested too deeply") from None
    except msgspec.ValidationError:
        raise _Wrong(code, message or "the line must be a JSON object") from None
    except msgspec.MsgspecError as error:
        raise _Wrong(code, message or f"the line is not JSON: {error}") from None
