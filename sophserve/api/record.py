"""What the log says about one request: its id and its figures, never its text."""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from aiohttp import web

from sophserve.errors import RequestError

_SANE_ID = re.compile(r"[A-Za-z0-9][\w.:@+=-]{0,127}", re.ASCII)


@dataclass
class Record:
    """Filled in while a request is served. Times are of time.monotonic(); stream is set once its headers go out."""

    started: float
    id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_output: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    error: str | None = None
    error_code: str | None = None
    stream: web.StreamResponse | None = None

    def __str__(self) -> str:
        now = time.monotonic()
        parts = []
        if self.id:
            parts.append(self.id)
        if self.prompt_tokens:
            parts.append(f"prompt={self.prompt_tokens} cached={self.cached_tokens} output={self.output_tokens}")
        if self.first_output is not None:
            parts.append(f"first_token={self.first_output - self.started:.3f}s decode={now - self.first_output:.3f}s")
        if self.finish_reasons:
            parts.append("finish=" + ",".join(sorted(set(self.finish_reasons))))
        if self.error is not None:
            parts.append(f"error={self.error!r}")
        return "".join(" " + part for part in [f"total={now - self.started:.3f}s", *parts])


# That of the request which the running task serves.
current_record: ContextVar[Record] = ContextVar("current_record")


def given_id(request: web.Request) -> str | None:
    """The client's X-Request-Id; None for one that a log or a path should not repeat."""
    identity = request.headers.get("X-Request-Id", "")
    return identity if _SANE_ID.fullmatch(identity) else None


def name_request(prefix: str, wanted: str | None = None) -> str:
    """The id of the request that the running task serves: that of its header, else the one wanted, else a new one
    that begins with the prefix.

    Raises RequestError for a wanted one that is not a short word.
    """
    if wanted is not None and not _SANE_ID.fullmatch(wanted):
        raise RequestError("request_id must be up to 128 letters, digits and any of _ . : @ + = -", "request_id")
    record = current_record.get()
    record.id = record.id or wanted or f"{prefix}{uuid4().hex}"
    return record.id
