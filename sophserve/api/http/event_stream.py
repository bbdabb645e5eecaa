"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) on their way to one client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Self

from aiohttp import web

from sophserve.api.http.connections import CONNECTIONS
from sophserve.api.http.request_record import current_record, name_request

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """Use as a context. The headers wait for the first event, so that what fails before it has a status of its own.

    Where nothing is sent for a while a comment is, lest a proxy or client give up. That sends the headers, too: not
    before may_begin says so, while the request may still be refused.
    """

    def __init__(self, request: web.Request, headers: Mapping[str, str], may_begin: Callable[[], bool]) -> None:
        self.response = web.StreamResponse(headers={**headers, **_HEADERS})
        self._request = request
        self._may_begin = may_begin
        self._interval = request.app[CONNECTIONS].config.sse_keep_alive_interval
        self._record = current_record.get()
        self._loop = asyncio.get_running_loop()
        self._sent = self._loop.time()
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._interval:
            self._timer = self._loop.call_later(self._interval, self._tick)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()
        if self._comment:
            # To its end, for half a comment would spoil what follows; it waits for the client at most, which a client
            # that goes away ends.
            await self._comment

    async def send(self, data: bytes) -> None:
        """Write whole events."""
        async with self._lock:
            if not self.response.prepared:
                await self.response.prepare(self._request)
                self._record.stream = self.response
            await self.response.write(data)
            self._sent = self._loop.time()

    def _tick(self) -> None:
        silent = self._loop.time() - self._sent
        # While a write waits for a slow client nothing needs to be added to it.
        if silent >= self._interval and not self._lock.locked() and (self.response.prepared or self._may_begin()):
            self._comment = asyncio.create_task(self._keep_alive())
        left = self._interval - silent
        self._timer = self._loop.call_later(left if left > 0 else self._interval, self._tick)

    async def _keep_alive(self) -> None:
        with suppress(ConnectionError):  # the handler hears of it as well
            await self.send(b": keep-alive\n\n")


async def send_events(
    request: web.Request, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Answer with events that are made elsewhere, until there are no more."""
    headers = {"X-Request-Id": name_request("req-"), **(headers or {})}
    async with EventStream(request, headers, lambda: True) as sent:
        async for event in events:
            await sent.send(event)
        if not sent.response.prepared:
            await sent.send(b"")
    await sent.response.write_eof()
    return sent.response
