"""Bodies of requests on their way in: within limits of size, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion11

from sophserve.api.http.connections import CONNECTIONS, LEAST_PROGRESS, Connection, Connections
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import Record, current_record
from sophserve.errors import RequestError

MAX_BODY_BYTES = 32 * 1024**2
# What a refused body would have brought must not be taken for the next request.
_CLOSE = {"Connection": "close"}


@asynccontextmanager
async def received(request: web.Request) -> AsyncIterator[bytearray]:
    """The body, which counts as memory of its client until the context ends. Raises ApiError, RequestError."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large()
    await ask_for_body(request)
    record, connections = current_record.get(), request.app[CONNECTIONS]
    upload = _Upload(record.client, connections, request.protocol)
    try:
        with uploading(record):
            body = await upload.read(request.content)
        yield body
    finally:
        connections.uploads.hold(upload, 0)


@contextmanager
def uploading(record: Record) -> Iterator[None]:
    """A body is awaited within this context."""
    record.uploading = True
    try:
        yield
    finally:
        record.uploading = False


async def take_expectation(request: web.Request) -> None:
    """What aiohttp does when a client asks whether to send its body: nothing yet, as it may not be wanted."""


async def ask_for_body(request: web.Request) -> None:
    """Let a client send the body that it has announced. Raises ApiError, RequestError for one that cannot be read."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("compressed bodies are not supported; leave out Content-Encoding")
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise ApiError(417, "Expect: 100-continue is all that can be expected; leave out Expect", headers=_CLOSE)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun


class Pace:
    """The time limit of a body that is being received, which begins anew with every LEAST_PROGRESS bytes.

    progress: when it did so last, on the loop's clock.
    """

    def __init__(self, connections: Connections, protocol: object) -> None:
        self.progress = asyncio.get_running_loop().time()
        self._connections = connections
        self._connection = protocol if isinstance(protocol, Connection) else None
        self._deadline: asyncio.Timeout | None = None
        self._uncounted = 0

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Receive the body within this context. Raises ApiError once it stands still."""
        self._note_progress()
        try:
            async with asyncio.timeout(self._connections.config.body_timeout) as self._deadline:
                yield
        except TimeoutError:
            raise self._too_slow() from None
        finally:
            self._deadline = None

    def count(self, size: int) -> None:
        """So many bytes have come."""
        self._uncounted += size
        if self._uncounted >= LEAST_PROGRESS:
            self._uncounted = 0
            self._note_progress()
            if self._deadline is not None and not self._deadline.expired():
                self._deadline.reschedule(self.progress + self._connections.config.body_timeout)

    def _note_progress(self) -> None:
        self.progress = asyncio.get_running_loop().time()
        if self._connection:
            self._connection.progress = self.progress

    def _too_slow(self) -> ApiError:
        self._connections.refused["body_timeout"] += 1
        limit = self._connections.config.body_timeout
        return ApiError(
            408,
            f"the request body did not come within {limit:g} s; send it without a pause",
            code="body_timeout",
            headers=_CLOSE,
        )


class _Upload(Pace):
    """See Holder."""

    def __init__(self, client: str, connections: Connections, protocol: object) -> None:
        super().__init__(connections, protocol)
        self.client = client
        self._gave_way = False

    async def read(self, content: StreamReader) -> bytearray:
        """The whole body. Raises ApiError."""
        body = bytearray()
        async with self.limited():
            while chunk := await content.readany():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large()
                self._connections.uploads.hold(self, len(body))
                if self._gave_way:
                    raise self._refused()
                self.count(len(chunk))
        return body

    def give_way(self) -> None:
        self._gave_way = True
        # A body that is complete is about to be let go.
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(0.0)

    def _too_slow(self) -> ApiError:
        return self._refused() if self._gave_way else super()._too_slow()

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
