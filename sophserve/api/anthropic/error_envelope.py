"""Anthropic's errors."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.anthropic.answer_types import AnthropicErrorBody
from sophserve.api.http.errors import ApiError, Envelope
from sophserve.api.http.request_record import name_request
from sophserve.errors import ContextLengthError

_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _body(error: ApiError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    details = {"type": kind, "message": str(error)}
    return {"type": "error", "error": details, "request_id": name_request("req-"), **error.extra}


def _event(error: ApiError) -> bytes:
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_body(error))


def _message(error: Exception) -> str:
    # Clients know a prompt that is too long by these words.
    if isinstance(error, ContextLengthError) and error.tokens > error.most:
        return f"prompt is too long: {error.tokens} tokens > {error.most} maximum"
    return str(error)


ANTHROPIC = Envelope(AnthropicErrorBody, _body, _event, _message)


def speaks_anthropic(request: web.Request) -> bool:
    """Whether a client of Anthropic's API asks for what both APIs have."""
    return "anthropic-version" in request.headers
