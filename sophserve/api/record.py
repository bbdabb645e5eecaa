"""What the log says about one request. Never its text."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from aiohttp import web


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
            parts.append(
                f"{self.id} prompt={self.prompt_tokens} cached={self.cached_tokens} output={self.output_tokens}"
            )
        if self.first_output is not None:
            parts.append(f"first_token={self.first_output - self.started:.3f}s decode={now - self.first_output:.3f}s")
        if self.finish_reasons:
            parts.append("finish=" + ",".join(sorted(set(self.finish_reasons))))
        if self.error is not None:
            parts.append(f"error={self.error!r}")
        return "".join(" " + part for part in [f"total={now - self.started:.3f}s", *parts])


# That of the request which the running task serves.
current_record: ContextVar[Record] = ContextVar("current_record")
