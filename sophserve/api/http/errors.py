"""Answers that are errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from sophserve.errors import SophserveError

MAX_MESSAGE = 500


class ApiError(SophserveError):
    """An answer other than 200. `extra` stands beside the envelope's `error`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "...")
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers
        self.extra = extra or {}


@dataclass(frozen=True)
class Envelope:
    """How an API words an error: as a whole body, whose type is `schema`, and as the event that ends a stream.

    message: what it says of a RequestError.
    """

    schema: Any
    body: Callable[[ApiError], dict[str, Any]]
    event: Callable[[ApiError], bytes]
    message: Callable[[Exception], str] = str

    def response(self, error: ApiError) -> web.Response:
        body = msgspec.json.encode(self.body(error))
        return web.Response(status=error.status, body=body, content_type="application/json", headers=error.headers)
