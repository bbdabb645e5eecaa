"""Connections: what each of them is doing, how long that may take, and what the server holds in memory for it."""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

from aiohttp import StreamReader, web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sophserve.api.http.budget import Budget
from sophserve.api.http.request_record import Record
from sophserve.config import ServerConfig

log = logging.getLogger(__name__)

# Bytes that have to move within a time limit for it to begin anew: a byte a minute is no progress.
LEAST_PROGRESS = 16 * 1024
# A header beyond this is nobody's: web servers take 8 to 64 KiB.
_LONGEST_HEADER = 64 * 1024
GRACE = 0.25
"""Seconds for a request to come over a new connection, even where others wait for its place."""
# Where no idle connection is left to close, those that have stood still for so many seconds are closed for new ones.
_STANDSTILL = 10.0
SERVER = "sophserve"
"""What the Server header says: no versions."""

REASONS = (
    "queue_full",
    "rate_limit",
    "header_timeout",
    "body_timeout",
    "write_timeout",
    "too_many_connections",
    "upload_memory",
    "unread_memory",
    "origin",
    "cancelled",
)
"""Why requests and connections are refused or ended."""


class Connections:
    """All of them. `on_room` is called when there may be room for one more."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.open: set[Connection] = set()
        self.uploads = Budget(config.upload_bytes)
        self.unread = Budget(config.unread_bytes)
        self.refused = Counter(dict.fromkeys(REASONS, 0))
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.on_room: Callable[[], None] | None = None
        # Without a request, in the order in which they came to be so.
        self._idle: dict[Connection, None] = {}

    def set_busy(self, connection: Connection, busy: bool) -> None:
        """A request begins, or the connection waits for one from now on."""
        self._idle.pop(connection, None)
        if not busy:
            self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        self.open.discard(connection)
        self._idle.pop(connection, None)
        self.unread.hold(connection, 0)
        if self.on_room:
            self.on_room()

    def close_one(self) -> bool:
        """Close a connection for a new one: that which has waited longest for a request, else that which has moved no
        byte for longest, if that is long. False where there is none such."""
        now = asyncio.get_running_loop().time()
        found = next(iter(self._idle), None)
        if found is None or now - found.progress <= GRACE:
            standing = [connection for connection in self.open if connection.stands_still(now, _STANDSTILL)]
            if not standing:
                return False
            found = min(standing, key=lambda connection: connection.progress)
        self._idle.pop(found, None)
        found.cut("too_many_connections")
        return True

    async def watch(self) -> None:
        """See to the time limits, for as long as the server runs."""
        config, loop = self.config, asyncio.get_running_loop()
        shortest = min(config.header_timeout, config.body_timeout, config.write_timeout, config.keep_alive_timeout)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            for number, connection in enumerate(list(self.open)):
                connection.check(loop.time())
                if number % 1000 == 999:
                    await asyncio.sleep(0)
            if self.on_room:
                self.on_room()

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "sophserve:connections_open": ("Open connections.", len(self.open)),
            "sophserve:connections_idle": ("Connections without a request.", len(self._idle)),
            "sophserve:upload_bytes": ("Bytes held of bodies that are being received.", self.uploads.total),
            "sophserve:unread_bytes": ("Bytes held of answers that clients do not read.", self.unread.total),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        refused = CounterMetricFamily("sophserve:refused", "Refused requests, cut connections.", labels=["reason"])
        for reason, value in self.refused.items():
            refused.add_metric([reason], value)
        yield refused


class Connection(web.RequestHandler):
    """aiohttp's connection with time limits: for a header, for reading an answer, and for a next request.

    progress: when bytes moved last; record: of the request that is being answered.
    """

    __slots__ = (
        "_blocked",
        "_body",
        "_closing",
        "_connections",
        "_descriptor",
        "_finished",
        "_owner",
        "_partial",
        "_wire",
        "progress",
        "record",
    )

    def __init__(self, server: web.Server, connections: Connections, **options: Any) -> None:
        super().__init__(server, **options)
        self.progress = self._loop.time()
        self.record: Record | None = None
        self._owner: Record | None = None  # the last one
        self._connections = connections
        self._wire: asyncio.Transport | None = None
        self._descriptor = -1
        self._body: StreamReader | None = None
        self._partial = 0  # bytes of a header that is not complete
        self._finished = 0  # requests that have been answered
        self._blocked: int | None = None  # unsent bytes when progress was made last, while writing waits
        self._closing = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)  # uvloop's are not all subclasses of it
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._connections.open.add(self)
        self._connections.set_busy(self, False)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._request_count > self._finished or not (self._body is None or self._body.is_eof()):
            self._partial = 0  # it belongs to a request, or to the rest of one that was refused
            return
        if not self._partial and data:
            self.progress = self._loop.time()  # the header's time begins with its first byte
        self._partial += len(data)
        if self._partial > _LONGEST_HEADER and self._wire and not self._wire.is_closing():
            self._wire.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n")
            self.force_close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.progress = self._loop.time()
        self._blocked = self.unsent
        self._count_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked = None
        self._connections.unread.hold(self, 0)

    def begin(self, record: Record, body: StreamReader) -> None:
        """A request is being answered from now on."""
        self.record, self._owner, self._body = record, record, body
        self._partial = 0
        self._connections.set_busy(self, True)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what there is to send; the request is done then."""
        if not resp.prepared:
            resp.headers["Server"] = SERVER
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.record = None
            self._finished += 1
            self.progress = self._loop.time()
            if self._wire:
                self._connections.set_busy(self, False)

    @property
    def client(self) -> str:
        return self._owner.client if self._owner else ""

    @property
    def blocked(self) -> bool:
        """Whether writing waits for the client to read."""
        return self._blocked is not None

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken yet, those in the system's buffer included."""
        if self._wire is None or self._wire.is_closing():
            return 0
        queued = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, queued)
        return self._wire.get_write_buffer_size() + queued[0]

    def give_way(self) -> None:
        self._loop.call_soon(self.cut, "unread_memory")  # not while something is being written

    def cut(self, reason: str) -> None:
        self._connections.refused[reason] += 1
        if self.record is not None:
            self.record.error, self.record.error_code = f"cut: {reason}", reason
            log.info("cut the connection of request %s: %s", self.record.id, reason)
        if self._wire:
            self._wire.abort()

    def stands_still(self, now: float, seconds: float) -> bool:
        """Whether a client has neither sent nor read for so long what the server waits for."""
        waits = self._blocked is not None or (self.record is not None and self.record.uploading)
        return waits and now - self.progress > seconds

    def check(self, now: float) -> None:
        """Close what is over its time."""
        config = self._connections.config
        if self._wire is None:
            return
        if self._wire.is_closing():  # what is left to send may never be read
            self._closing = self._closing or now
            if now - self._closing > config.write_timeout:
                self.cut("write_timeout")
            return
        if self.record is None:
            self._check_idle(now)
        elif self._blocked is not None:
            unsent = self.unsent
            if unsent <= self._blocked - LEAST_PROGRESS:
                self._blocked, self.progress = unsent, now
            elif now - self.progress > config.write_timeout:
                self.cut("write_timeout")
                return
        self._count_unread()

    def _check_idle(self, now: float) -> None:
        config = self._connections.config
        if self._partial or not self._finished:
            limit, reason = config.header_timeout, "header_timeout"
        else:
            limit, reason = config.keep_alive_timeout, ""
        if now - self.progress > limit:
            if reason:
                self._connections.refused[reason] += 1
            self.force_close()

    def _count_unread(self) -> None:
        if self._wire is None:
            return
        size = self._wire.get_write_buffer_size()
        if self._blocked is not None and self.record is not None and self.record.answers is not None:
            size += self.record.answers.unread_bytes
        self._connections.unread.hold(self, size)


CONNECTIONS = web.AppKey("connections", Connections)


class _Server(web.Server):
    """Makes a Connection where aiohttp makes its own."""

    def __init__(self, made: web.Server, connections: Connections, options: dict[str, Any]) -> None:
        super().__init__(
            made.request_handler, request_factory=made.request_factory, handler_cancellation=True, **options
        )
        self._all = connections
        self._options = options

    def __call__(self) -> Connection:
        return Connection(self, self._all, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs the application: a client that goes away, or is over its time, cancels its handler."""

    def __init__(self, app: web.Application, connections: Connections) -> None:
        super().__init__(app, shutdown_timeout=1)
        self._connections = connections
        self._watcher: asyncio.Task[None] | None = None

    @property
    def factory(self) -> Callable[[], Connection]:
        """Makes the protocol of a new connection, once set up."""
        assert isinstance(self.server, _Server)
        return self.server

    async def setup(self) -> None:
        await super().setup()
        self._watcher = asyncio.create_task(self._connections.watch())

    async def cleanup(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        # No access log of aiohttp's, and time limits of our own: its timer closes connections amid a header. What it
        # reads ahead of those who count it is as little as it can be.
        options = {"auto_decompress": False, "access_log": None, "keepalive_timeout": 10**6, "read_bufsize": 2**15}
        return _Server(await super()._make_server(), self._connections, options)
