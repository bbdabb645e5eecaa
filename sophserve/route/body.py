"""Bodies of requests on their way to a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from sophserve.api.http.connections import CONNECTIONS, Connections
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record
from sophserve.api.http.upload import Pace, ask_for_body, received, uploading

# Bytes that are handed over at once.
_PIECE = 1 << 16
# Bytes of a form beside its file.
_REST_OF_FORM = 1 << 16


class WholeBody:
    """One that is kept until its request is answered, so that another replica can be asked. It counts as memory of its
    client; where that runs short it is let go once it is sent.

    data: empty where it was let go. See Holder.
    """

    def __init__(self, data: bytearray, client: str) -> None:
        self.data = data
        self.size: int | None = len(data)
        self.client = client
        self.progress = asyncio.get_running_loop().time()
        self.problem: ApiError | None = None
        self._let_go = False
        self._sending = False

    @property
    def can_be_sent(self) -> bool:
        """Whether there is all of it."""
        return len(self.data) == self.size

    def payload(self) -> bytes | AsyncIterator[bytes] | None:
        """For a client session."""
        if not self.data:
            return None
        return bytes(self.data) if len(self.data) <= _PIECE else self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        self._sending = True
        for start in range(0, len(self.data), _PIECE):
            yield bytes(self.data[start : start + _PIECE])
        self._sending = False
        if self._let_go:
            self.data = bytearray()

    def give_way(self) -> None:
        self._let_go = True
        if not self._sending:
            self.data = bytearray()


class PassingBody:
    """One that goes through as it comes: a form with a file. problem: why it ended before its end."""

    def __init__(self, request: web.Request, connections: Connections) -> None:
        self.size = request.content_length
        self.problem: ApiError | None = None
        self.can_be_sent = True
        self._request = request
        self._connections = connections

    def payload(self) -> AsyncIterator[bytes]:
        """For a client session, once."""
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.can_be_sent = False
        pace = Pace(self._connections, self._request.protocol)
        total, most = 0, self._connections.config.file_bytes + _REST_OF_FORM
        try:
            await ask_for_body(self._request)
            with uploading(current_record.get()):
                async with pace.limited():
                    while chunk := await self._request.content.readany():
                        total += len(chunk)
                        if total > most:
                            raise _too_large(most)
                        pace.count(len(chunk))
                        yield chunk
        except ApiError as error:
            self.problem = error
            raise


Body = WholeBody | PassingBody


@asynccontextmanager
async def body_of(request: web.Request) -> AsyncIterator[Body]:
    """The request's: whole if it is JSON or nothing. Raises ApiError, RequestError."""
    connections = request.app[CONNECTIONS]
    if request.body_exists and request.content_type.startswith("multipart/"):
        most = connections.config.file_bytes + _REST_OF_FORM
        if (request.content_length or 0) > most:
            raise _too_large(most)
        yield PassingBody(request, connections)
        return
    record = current_record.get()
    data = bytearray()
    if request.body_exists:
        async with received(request) as data:
            pass
    record.body_bytes = len(data)
    body = WholeBody(data, record.client)
    del data
    connections.uploads.hold(body, len(body.data))
    try:
        yield body
    finally:
        connections.uploads.hold(body, 0)


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the request body is larger than {most} bytes (--max-file-size)", headers={"Connection": "close"}
    )
