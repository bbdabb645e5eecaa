"""OpenAI's errors."""

from __future__ import annotations

from typing import Any

import msgspec

from sophserve.api.http.errors import ApiError, Envelope
from sophserve.api.http.request_record import current_record
from sophserve.api.openai.answer_types import ErrorBody

_KINDS = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}


def _body(error: ApiError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    details = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": details, **error.extra}


def _event(error: ApiError) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(_body(error))


def _response_event(error: ApiError) -> bytes:
    number = current_record.get().events
    fields = {"type": "error", "code": error.code, "message": str(error), "param": error.param}
    body = fields | {"sequence_number": number} | _body(error)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(body)


OPENAI = Envelope(ErrorBody, _body, _event)
RESPONSES = Envelope(ErrorBody, _body, _response_event)
