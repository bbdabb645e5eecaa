"""The sockets that the server listens on. It accepts no more than it has descriptors for, so that none is refused."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sophserve.api.http.connections import GRACE, Connection, Connections
from sophserve.config import ServerConfig

log = logging.getLogger(__name__)

# Connections that may wait to be accepted: a client beyond them is not refused, but tries again after seconds.
_BACKLOG = 2048
# Accepted at one go, so that others have their turn.
_BATCH = 64
# Bytes of an answer that the system keeps for a client which does not read, beside what the server keeps.
_SEND_BUFFER = 256 * 1024
# Descriptors kept back: for files, and for each worker that may have to be started anew.
_RESERVE, _RESERVE_PER_WORKER = 24, 40


def raise_descriptor_limit() -> None:
    """As many descriptors as the process may have: the usual 1024 are there for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit(most: int, workers: int) -> int:
    """How many connections there may be: `most`, or what the descriptors allow that are left."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most
    left = limit - len(list(Path("/dev/fd").iterdir()))
    reserve = min(_RESERVE + _RESERVE_PER_WORKER * workers, left // 2)
    if left - reserve < most:
        log.info("%d descriptors (ulimit -n) are enough for %d connections at once", limit, max(1, left - reserve))
    return max(1, min(most, left - reserve))


def bind(config: ServerConfig) -> list[socket.socket]:
    """Sockets for the address in the options; a name may stand for several. Raises OSError."""
    if config.uds:
        return [_bind_unix(Path(config.uds))]
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        port = sockets[0].getsockname()[1] if sockets else config.port  # that which the system chose, for all
        try:
            sockets.append(_bind_one(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            # A machine may have no IPv6, and then localhost has another address.
            failure = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and config.port:
                for opened in sockets:
                    opened.close()
                raise
    if not sockets and failure is not None:
        raise failure
    return sockets


def _bind_one(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


def _bind_unix(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # of a server that is gone
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.bind(str(path))
    except OSError:
        opened.close()
        raise
    return opened


class Listener:
    """Accepts connections, up to `most` at once. At that bound the connection that has been idle for longest makes
    room; where none is idle, clients wait to be accepted."""

    def __init__(
        self,
        server: Callable[[], Connection],
        sockets: list[socket.socket],
        connections: Connections,
        most: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = server
        self._sockets = sockets
        self._connections = connections
        self._most = most
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], Connection] = {}  # oldest first
        self._paused = False
        self._retry: asyncio.TimerHandle | None = None
        for listening in sockets:
            listening.setblocking(False)
            listening.listen(_BACKLOG)
        connections.on_room = self._resume
        self._read(True)

    @property
    def port(self) -> int:
        """Where it listens, for TCP."""
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        if not self._paused:
            self._read(False)
        self._connections.on_room = None
        for listening in self._sockets:
            listening.close()
        self._sockets = []

    def _read(self, on: bool) -> None:
        for listening in self._sockets:
            if on:
                self._loop.add_reader(listening.fileno(), self._accept, listening)
            else:
                self._loop.remove_reader(listening.fileno())

    def _resume(self) -> None:
        if not self._paused or not self._sockets:
            return
        if len(self._connections.open) >= self._most:
            self._make_room()
        else:
            self._paused = False
            self._read(True)

    def _accept(self, listening: socket.socket) -> None:
        if len(self._connections.open) >= self._most:  # and one more is waiting
            self._make_room()
            return
        for _ in range(_BATCH):
            if len(self._connections.open) >= self._most:
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM: others have taken what was left
                log.warning("cannot accept connections for a moment: %s", error.strerror)
                self._pause()
                return
            accepted.setblocking(False)
            connection = self._server()
            self._connections.open.add(connection)
            task = self._loop.create_task(self._open(connection, accepted))
            self._opening[task] = connection
            task.add_done_callback(self._opened)

    def _make_room(self) -> None:
        """Wait for a connection that closes, and see to it that one does."""
        self._pause()
        if self._connections.close_one():
            return
        opening = next(iter(self._opening), None)
        if opening and self._loop.time() - self._opening[opening].progress > GRACE:
            opening.cancel()  # a handshake of TLS
        elif self._retry is None:
            self._retry = self._loop.call_later(GRACE, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._resume()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._read(False)

    async def _open(self, connection: Connection, accepted: socket.socket) -> None:
        await self._loop.connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=self._context,
            ssl_handshake_timeout=self._connections.config.header_timeout if self._context else None,
        )

    def _opened(self, task: asyncio.Task[None]) -> None:
        connection = self._opening.pop(task)
        # What goes wrong before the first byte is the client's affair: no TLS, another certificate, gone again.
        if task.cancelled() or task.exception():
            self._connections.remove(connection)
