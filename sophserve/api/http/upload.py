"""Bodies of requests on their way in: within limits of size, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion11

from sophserve.api.http.connections import CONNECTIONS, LEAST_PROGRESS, Connection, Connections
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record
from sophserve.errors import RequestError

MAX_BODY_BYTES = 32 * 1024**2
# What a refused body would have brought must not be taken for the next request.
_CLOSE = {"Connection": "close"}


@asynccontextmanager
async def received(request: web.Request) -> AsyncIterator[bytearray]:
    """The body, which counts as memory of its client until the context ends. Raises ApiError, RequestError."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("compressed bodies are not supported; leave out Content-Encoding")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large()
    await _ask_for_it(request)
    record, connections = current_record.get(), request.app[CONNECTIONS]
    upload = _Upload(record.client, connections, request.protocol)
    record.uploading = True
    try:
        body = await upload.read(request.content)
        record.uploading = False
        yield body
    finally:
        record.uploading = False
        connections.uploads.hold(upload, 0)


async def take_expectation(request: web.Request) -> None:
    """What aiohttp does when a client asks whether to send its body: nothing yet, as it may not be wanted."""


async def _ask_for_it(request: web.Request) -> None:
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise ApiError(417, "Expect: 100-continue is all that can be expected; leave out Expect", headers=_CLOSE)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun


class _Upload:
    """See Holder."""

    def __init__(self, client: str, connections: Connections, protocol: object) -> None:
        self._client = client
        self.progress = asyncio.get_running_loop().time()
        self._connections = connections
        self._connection = protocol if isinstance(protocol, Connection) else None
        self._deadline: asyncio.Timeout | None = None
        self._gave_way = False

    @property
    def client(self) -> str:
        return self._client

    async def read(self, content: StreamReader) -> bytearray:
        """The whole body. Raises ApiError."""
        loop, limit = asyncio.get_running_loop(), self._connections.config.body_timeout
        body, counted = bytearray(), 0
        self._note_progress()
        try:
            async with asyncio.timeout(limit) as self._deadline:
                while chunk := await content.readany():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise too_large()
                    self._connections.uploads.hold(self, len(body))
                    if self._gave_way:
                        raise self._refused()
                    if len(body) - counted >= LEAST_PROGRESS:
                        counted = len(body)
                        self._note_progress()
                        self._deadline.reschedule(loop.time() + limit)
        except TimeoutError:
            if self._gave_way:
                raise self._refused() from None
            self._connections.refused["body_timeout"] += 1
            raise ApiError(
                408,
                f"the request body did not come within {limit:g} s; send it without a pause",
                code="body_timeout",
                headers=_CLOSE,
            ) from None
        finally:
            self._deadline = None
        return body

    def give_way(self) -> None:
        self._gave_way = True
        # A body that is complete is about to be let go.
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(0.0)

    def _note_progress(self) -> None:
        self.progress = asyncio.get_running_loop().time()
        if self._connection:
            self._connection.progress = self.progress

    def _refused(self) -> ApiError:
        self._connections.refused["upload_memory"] += 1
        return ApiError(
            429,
            "the bodies of requests that are on their way hold all the memory there is for them; try again later",
            code="upload_memory",
            headers={"Retry-After": "1", **_CLOSE},
        )


def too_large() -> ApiError:
    """Why a body is refused that has more than MAX_BODY_BYTES."""
    return ApiError(413, f"the request body is larger than {MAX_BODY_BYTES // 1024**2} MiB", headers=_CLOSE)
