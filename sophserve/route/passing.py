"""One request to one replica, and its answer to the client, piece by piece as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record
from sophserve.http_client import what_failed
from sophserve.route.body import Body
from sophserve.route.headers import to_client, to_replica
from sophserve.route.replicas import Replica

# An answer of no more bytes is sent once there is all of it, and an error where it does not come.
_WHOLE = 1 << 20
# Bytes of half an event that are kept back until the rest comes.
_MOST_OF_AN_EVENT = 1 << 16
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
_EVENTS = "text/event-stream"

Saw = Callable[[bytes], None]
"""Is called with the first bytes of an answer's body."""


class Unreached(Exception):
    """The replica took no connection: it has not begun with the request."""


@asynccontextmanager
async def asked(
    session: aiohttp.ClientSession, replica: Replica, request: web.Request, body: Body
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The replica's answer, of which the headers have come. Leaving the context before its end closes the connection,
    and so ends the request there. Raises Unreached, ApiError."""
    headers = to_replica(request)
    if body.size is not None and (body.size or request.body_exists):
        headers["Content-Length"] = str(body.size)
    url = URL(replica.name + request.rel_url.raw_path_qs, encoded=True)
    try:
        answer = await session.request(request.method, url, headers=headers, data=body.payload(), allow_redirects=False)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Unreached(what_failed(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        if body.problem:
            raise body.problem from None
        raise _lost(replica, error, "before it answered") from None
    try:
        yield answer
    finally:
        answer.close() if not answer.content.at_eof() else answer.release()


async def pass_on(
    request: web.Request, answer: aiohttp.ClientResponse, replica: Replica, saw: Saw
) -> web.StreamResponse:
    """Send an answer to the client. Raises ApiError if the replica is lost before its end."""
    current_record.get().id = answer.headers.get("X-Request-Id")
    headers = to_client(answer.headers)
    if answer.content_type == _EVENTS and answer.status == 200:
        return await _pass_events(request, answer, replica, headers, saw)
    size = answer.content_length
    bodiless = request.method == "HEAD" or answer.status in (204, 304)
    if size is not None and size <= _WHOLE and not bodiless:
        try:
            data = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(replica, error, "amid its answer") from None
        saw(data)
        headers.pop("Content-Length", None)
        return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=data)
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    await response.prepare(request)
    try:
        async for data in answer.content.iter_any():
            saw(data)
            await response.write(data)
    except _BROKEN as error:
        _lost(replica, error, "amid its answer")
        if request.transport:
            request.transport.abort()  # all that can tell a client that this is not the end
        raise ConnectionResetError("the answer has no end") from None
    await response.write_eof()
    return response


async def _pass_events(
    request: web.Request, answer: aiohttp.ClientResponse, replica: Replica, headers: CIMultiDict[str], saw: Saw
) -> web.StreamResponse:
    """As they are, but that half an event waits for its end: an error can only come behind a whole one."""
    record = current_record.get()
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    await response.prepare(request)
    record.stream = response
    rest = b""
    try:
        async for data in answer.content.iter_any():
            saw(data)
            data, rest = _whole_events(rest + data)
            if data:
                record.events += data.count(b"\nevent:") + data.startswith(b"event:")
                await response.write(data)
    except _BROKEN as error:
        raise _lost(replica, error, "amid its answer") from None
    if rest:
        await response.write(rest)
    await response.write_eof()
    return response


def _whole_events(data: bytes) -> tuple[bytes, bytes]:
    """What ends with an event, and the beginning of the next one."""
    if data.endswith(_ENDS):
        return data, b""
    end = max(place + len(mark) if (place := data.rfind(mark)) >= 0 else 0 for mark in _ENDS)
    return (data[:end], data[end:]) if len(data) - end <= _MOST_OF_AN_EVENT else (data, b"")


def _lost(replica: Replica, error: BaseException, when: str) -> ApiError:
    replica.failures["lost"] += 1
    record = current_record.get()
    record.notes["reason"] = what_failed(error)
    return ApiError(502, f"the replica that ran this request was lost {when}; send it again", code="replica_lost")
