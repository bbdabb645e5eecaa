"""Whatever a handler raises becomes an answer, and one line of the log ends each request."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.http.connections import Connection
from sophserve.api.http.errors import ApiError, Envelope
from sophserve.api.http.request_record import Record, current_record, given_id, name_request
from sophserve.api.http.upload import too_large
from sophserve.errors import RequestError, ServerBusy

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Errors whose messages may quote what the client sent. The log shows nothing of that.
_QUOTING = frozenset({400, 404, 405})


class Routes(Protocol):
    """What has to be known of the routes. Paths are without --root-path."""

    def envelope(self, request: web.Request, path: str) -> Envelope:
        """In which a path's errors are, even where nothing is served at it."""

    def names_something(self, path: str) -> bool:
        """Whether the path ends in a name, or looks like it."""

    def is_quiet(self, path: str) -> bool:
        """Whether its requests are left out of the log."""


def answer_errors(root_path: str, routes: Routes) -> Middleware:
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
            response = await _answer(request, handler, record, routes)
            status = response.status
            if not response.prepared:
                response.headers["X-Request-Id"] = name_request("req-")
            return response
        except ConnectionError:
            return web.Response(status=status)  # cannot be sent
        finally:
            _log(request, status, record, routes.is_quiet(record.path))

    return middleware


def _log(request: web.Request, status: int, record: Record, quiet: bool) -> None:
    quiet = quiet or record.error_code == "loading"
    asked = {"method": request.method, "path": request.rel_url.raw_path, "status": status}
    line = " ".join(map(str, asked.values()))
    fields = {"fields": {**asked, **record.fields()}}
    log.log(logging.DEBUG if quiet else logging.INFO, "%s%s", line, record, extra=fields)


async def _answer(request: web.Request, handler: Handler, record: Record, routes: Routes) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as exception:
        envelope = routes.envelope(request, record.path)
        error = _as_api_error(request, exception, routes, envelope)
        record.error, record.error_code = _loggable(exception, error), error.code
        # Else the error keeps this call and this call the error, with all that the request had, until the next full
        # garbage collection.
        error.__traceback__ = error.__context__ = error.__cause__ = None
    if record.stream is None:
        return envelope.response(error)
    # The headers have gone out with status 200: the error can only be an event.
    await record.stream.write(envelope.event(error))
    await record.stream.write_eof()
    return record.stream


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


def _as_api_error(request: web.Request, exception: Exception, routes: Routes, envelope: Envelope) -> ApiError:
    match exception:
        case web.HTTPException():
            return _from_http(request, exception, routes)
        case web.RequestPayloadError():
            return ApiError(400, f"the request body cannot be read: {exception}")
    return as_api_error(exception, envelope, f"{request.method} {request.rel_url.raw_path}")


def as_api_error(exception: Exception, envelope: Envelope, request: str) -> ApiError:
    """What a client hears of an exception. One that is a failure of the server is logged, under these words for the
    request."""
    match exception:
        case ApiError():
            return exception
        case RequestError():
            return ApiError(400, envelope.message(exception), param=exception.param, code=exception.code)
        case ServerBusy():
            status, code = (429, "rate_limit_exceeded") if exception.mine else (503, "busy")
            return ApiError(status, str(exception), code=code, headers={"Retry-After": "1"})
    log.error("%s failed", request, exc_info=exception)
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


def _from_http(request: web.Request, exception: web.HTTPException, routes: Routes) -> ApiError:
    allow = exception.headers.get("Allow")
    match exception.status:
        case 404:
            message = f"{request.path} does not exist on this server"
        case 405 if request.method == "POST" and routes.names_something(current_record.get().path):
            return ApiError(404, f"POST {request.path} is not served; see /openapi.json for what is")
        case 405:
            message = f"{request.path} does not take {request.method}; use {allow}"
        case 413:
            return too_large()
        case _:
            message = exception.reason
    return ApiError(exception.status, message, headers={"Allow": allow} if allow else None)
