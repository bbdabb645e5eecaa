"""Every answer that is an error, in OpenAI's envelope or Anthropic's, and the log line that ends each request."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.http.connections import Connection
from sophserve.api.http.request_record import Record, current_record, given_id, name_request
from sophserve.errors import ContextLengthError, RequestError, ServerBusy, SophserveError

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 32 * 1024**2
MAX_MESSAGE = 500
HEALTH_PATHS = frozenset({"/health", "/ready", "/live", "/ping"})
_QUIET_PATHS = HEALTH_PATHS | {"/metrics"}  # asked for every few seconds

# Errors whose messages may quote what the client sent. The log shows nothing of that.
_QUOTING = frozenset({400, 404, 405})

_RESPONSES_PATH, ANTHROPIC_PATH, _MODELS_PATH = "/v1/responses", "/v1/messages", "/v1/models"
# What comes after these is a name, and what is not served below them looks like one.
_NAMED = (f"{_RESPONSES_PATH}/", f"{_MODELS_PATH}/", "/requests/")
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(SophserveError):
    """An answer other than 200. `extra` stands beside the envelope's `error`; anthropic: what Anthropic's API says."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: dict[str, Any] | None = None,
        anthropic: str | None = None,
    ) -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "...")
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers
        self.extra = extra or {}
        self.anthropic = anthropic

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        kinds = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error, **self.extra}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The envelope of Anthropic's API."""
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.anthropic or str(self)}, **self.extra}

    def response(self, path: str) -> web.Response:
        """The whole answer to a request for this path."""
        body = self.anthropic_body if path.startswith(ANTHROPIC_PATH) else self.body
        return web.Response(
            status=self.status,
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers=self.headers,
        )

    def event(self, path: str) -> bytes:
        """What ends a stream of events for this path."""
        if path.startswith(ANTHROPIC_PATH):
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(self.anthropic_body)
        if path.startswith(_RESPONSES_PATH):
            body = {"type": "error", "code": self.code, "message": str(self), "param": self.param, **self.body}
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(body)
        return b"data: %b\n\n" % msgspec.json.encode(self.body)


def answer_errors(root_path: str) -> Middleware:
    """Middleware that turns whatever a handler raises into an answer, and logs one line for the request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = Record(
            time.monotonic(), request.path.removeprefix(root_path), given_id(request), client=request.remote or ""
        )
        current_record.set(record)
        if isinstance(request.protocol, Connection):
            request.protocol.begin(record, request.content)
        status = 499  # the client went away before the answer
        try:
            response = await _answer(request, handler, record)
            status = response.status
            if not response.prepared:
                response.headers["X-Request-Id"] = name_request("req-")
            return response
        except ConnectionError:
            return web.Response(status=status)  # cannot be sent
        finally:
            _log(request, status, record)

    return middleware


def _log(request: web.Request, status: int, record: Record) -> None:
    quiet = record.path in _QUIET_PATHS or record.error_code == "loading"
    asked = {"method": request.method, "path": request.rel_url.raw_path, "status": status}
    line = " ".join(map(str, asked.values()))
    fields = {"fields": {**asked, **record.fields()}}
    log.log(logging.DEBUG if quiet else logging.INFO, "%s%s", line, record, extra=fields)


async def _answer(request: web.Request, handler: Handler, record: Record) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as exception:
        error = _as_api_error(request, exception)
        record.error, record.error_code = _loggable(exception, error), error.code
        # Else the error keeps this call and this call the error, with all that the request had, until the next full
        # garbage collection.
        error.__traceback__ = error.__context__ = error.__cause__ = None
    if record.stream is None:
        return error.response(ANTHROPIC_PATH if speaks_anthropic(request, record.path) else record.path)
    # The headers have gone out with status 200: the error can only be an event.
    await record.stream.write(error.event(record.path))
    await record.stream.write_eof()
    return record.stream


def speaks_anthropic(request: web.Request, path: str) -> bool:
    """Whether a client of Anthropic's API asks for what both APIs have."""
    return path.startswith(_MODELS_PATH) and "anthropic-version" in request.headers


def _loggable(exception: Exception, error: ApiError) -> str:
    """What the log says of an error. Where its message may quote the request: the field, the cause, and the line of
    code that refused it."""
    if error.status not in _QUOTING:
        return str(error)
    last = deque(traceback.walk_tb(exception.__traceback__), maxlen=1)
    where = "".join(f" ({Path(frame.f_code.co_filename).name}:{line})" for frame, line in last)
    cause = getattr(exception, "cause", None) or error.code or "is refused"
    return f"{_field(error.param) or 'the request'}: {cause}{where}"


def _field(param: str | None) -> str | None:
    """The name of a field of requests; None for what is no more than a client's word."""
    known = param is not None and set(re.findall(r"[^\W\d]\w*", param)) <= _field_names()
    return param if known else None


@cache
def _field_names() -> frozenset[str]:
    """Those of all bodies."""
    found, kinds = set(), [msgspec.Struct]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("sophserve."):
            found |= {field.encode_name for field in msgspec.structs.fields(kind)}
    return frozenset(found)


def _as_api_error(request: web.Request, exception: Exception) -> ApiError:
    match exception:
        case ApiError():
            return exception
        case ContextLengthError(param=param, code=code, anthropic=anthropic):
            return ApiError(400, str(exception), param=param, code=code, anthropic=anthropic)
        case RequestError():
            return ApiError(400, str(exception), param=exception.param, code=exception.code)
        case ServerBusy():
            status, code = (429, "rate_limit_exceeded") if exception.mine else (503, "busy")
            return ApiError(status, str(exception), code=code, headers={"Retry-After": "1"})
        case web.HTTPException():
            return _from_http(request, exception)
        case web.RequestPayloadError():
            return ApiError(400, f"the request body cannot be read: {exception}")
    log.error("%s %s failed", request.method, request.rel_url.raw_path, exc_info=exception)
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


def _from_http(request: web.Request, exception: web.HTTPException) -> ApiError:
    allow = exception.headers.get("Allow")
    match exception.status:
        case 404:
            message = f"{request.path} does not exist on this server"
        case 405 if request.method == "POST" and current_record.get().path.startswith(_NAMED):
            return ApiError(404, f"POST {request.path} is not served; see /openapi.json for what is")
        case 405:
            message = f"{request.path} does not take {request.method}; use {allow}"
        case 413:
            message = f"the request body is larger than {MAX_BODY_BYTES // 1024**2} MiB"
        case _:
            message = exception.reason
    return ApiError(exception.status, message, headers={"Allow": allow} if allow else None)
