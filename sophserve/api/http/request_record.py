"""What the log says about one request: its id and its figures, never its text."""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from aiohttp import web

from sophserve.api.http.quota import Account
from sophserve.errors import RequestError

_SANE_ID = re.compile(r"[A-Za-z0-9][\w.:@+=-]{0,127}", re.ASCII)


class Answers(Protocol):
    """What is being generated for a request."""

    @property
    def unread_bytes(self) -> int:
        """About what the client has not taken of them."""

    @property
    def generated_tokens(self) -> int:
        """Of all of them."""


@dataclass
class Record:
    """Filled in while a request is served. Times are of time.monotonic(); path is without --root-path; client is whose
    it is: an API key's name, else an address; body_bytes says how much there is to go through; uploading is set while
    that is awaited, stream once its headers go out; events counts those of an API that numbers them; warnings are for
    the client; background is set for what nobody waits for, which gives way to all else; notes are further fields of
    the log."""

    started: float
    path: str
    id: str | None = None
    client: str = ""
    account: Account | None = None
    background: bool = False
    body_bytes: int = 0
    answers: Answers | None = None
    uploading: bool = False
    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    queue_time: float = 0.0
    first_output: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    error_code: str | None = None
    stream: web.StreamResponse | None = None
    events: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def priority(self) -> int:
        """What the API key adds to the priority of its requests."""
        return self.account.key.priority if self.account else 0

    def spend(self, tokens: int) -> None:
        """Charge tokens to the API key."""
        if self.account:
            self.account.spend(tokens)

    def fields(self) -> dict[str, Any]:
        """What there is to say by now; times are seconds."""
        now = time.monotonic()
        found: dict[str, Any] = {"total": round(now - self.started, 4), "id": self.id}
        if self.account:
            found["key"] = self.account.key.name
        if self.prompt_tokens:
            found |= {"prompt": self.prompt_tokens, "cached": self.cached_tokens, "output": self.output_tokens}
        if self.accepted_tokens or self.rejected_tokens:
            found |= {"accepted": self.accepted_tokens, "rejected": self.rejected_tokens}
        if self.image_tokens:
            found["images"] = self.image_tokens
        if self.first_output is not None:
            found["queue"] = round(self.queue_time, 4)
            found["first_token"] = round(self.first_output - self.started, 4)
            found["decode"] = round(now - self.first_output, 4)
        if self.finish_reasons:
            found["finish"] = ",".join(sorted(set(self.finish_reasons)))
        return found | self.notes | {"error": self.error, "code": self.error_code}

    def __str__(self) -> str:
        found = self.fields()
        parts = [found.pop("id") or ""]
        del found["code"]
        for name, value in found.items():
            if isinstance(value, float):
                parts.append(f"{name}={value:.3f}s")
            elif value is not None:
                parts.append(f"{name}={value!r}" if name == "error" else f"{name}={value}")
        return "".join(" " + part for part in parts if part)


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
