"""The replicas: which there are, which of them answer, and what each has to do."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sophserve.api.http.deadlines import NOW, Deadlines
from sophserve.api.http.errors import ApiError
from sophserve.http_client import what_failed

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two looks at a replica's health, and at the addresses of a name."""
LOST_AFTER = 30.0
"""After so many seconds without a word from a replica its requests are given up."""
# Seconds that it may take to say how it is, and to take a connection.
_PATIENCE, _CONNECT = 5.0, 3.0
# Servers close idle connections after a time of their own (uvicorn after 5 s): no request should meet that.
_KEEP_ALIVE = 3.0
# Bytes of a header line of an answer.
_LONGEST_LINE = 1 << 16


class Replica:
    """One server. name: its address. up: whether it takes requests, else why_not says what it said instead. failures:
    requests that it did not answer, by reason."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = False
        self.why_not = "it was not asked yet"
        self.served = 0
        self.failures: Counter[str] = Counter()
        self._deadlines = Deadlines()
        self._end: ApiError | None = None
        self._silent_since: float | None = None

    @property
    def running(self) -> int:
        """Requests that it has from this router."""
        return len(self._deadlines)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """It has a request within this context. Raises ApiError for one that is given up."""
        self.served += 1
        deadline = asyncio.timeout(None)
        try:
            with self._deadlines.hold(deadline):
                async with deadline:
                    yield
        except TimeoutError:
            if deadline.when() != NOW or self._end is None:
                raise
            end = self._end
            raise ApiError(end.status, str(end), code=end.code) from None

    async def drain(self, seconds: float) -> None:
        """Wait for its requests, and after that time end them."""
        self._end = ApiError(503, "the router stops before this request is done", code="stopping")
        await self._deadlines.drain(seconds)

    def note(self, problem: str | None, silent: bool = False) -> None:
        """What came of asking it: nothing, or a problem. silent: it was not even heard."""
        if (problem is None) != self.up:
            log.info("replica %s %s", self.name, "is ready" if problem is None else f"takes no requests: {problem}")
        self.up, self.why_not = problem is None, problem or ""
        now = asyncio.get_running_loop().time()
        if not silent:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > LOST_AFTER and self.running:
            log.warning("replica %s was not heard for %g s; its requests are ended", self.name, LOST_AFTER)
            self.failures["lost"] += self.running
            self._end = ApiError(502, "the replica that ran this request does not answer any more", code="replica_lost")
            self._deadlines.end_all()


Find = Callable[[], Awaitable[Collection[str] | None]]
"""Looks up the addresses of replicas that come and go; None where that fails, and those known are to be kept."""


class Replicas:
    """All of them, those that `find` finds among them. One that is not found any more gets no new requests, and
    finishes those that it has."""

    def __init__(self, given: Collection[str] = (), find: Find | None = None) -> None:
        self._given = given
        self._find = find
        self._all = {url: Replica(url) for url in given}
        self._gone: list[Replica] = []
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE, ttl_dns_cache=10),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )

    @property
    def all(self) -> list[Replica]:
        return list(self._all.values())

    @property
    def known(self) -> list[Replica]:
        """With those that are gone and have requests to finish."""
        self._gone = [replica for replica in self._gone if replica.running]
        return self.all + self._gone

    @property
    def ready(self) -> list[Replica]:
        """Those that take requests."""
        return [replica for replica in self._all.values() if replica.up]

    async def watch(self) -> None:
        """See how they are, for as long as the router runs."""
        while True:
            started = asyncio.get_running_loop().time()
            await self.look()
            await asyncio.sleep(max(0.0, started + PERIOD - asyncio.get_running_loop().time()))

    async def look(self) -> None:
        """Ask each of them once how it is."""
        if self._find and (found := await self._find()) is not None:
            self._take(found)
        await asyncio.gather(*map(self._check, self.known))

    async def close(self) -> None:
        await self.session.close()

    def _take(self, found: Collection[str]) -> None:
        wanted = dict.fromkeys([*self._given, *found])
        for url in self._all.keys() - wanted.keys():
            log.info("replica %s is gone", url)
            self._gone.append(self._all.pop(url))
        for url in wanted.keys() - self._all.keys():
            self._all[url] = Replica(url)

    async def _check(self, replica: Replica) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                replica.note(await self._problem(replica))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            replica.note(what_failed(error), silent=True)

    async def _problem(self, replica: Replica) -> str | None:
        """Why a server takes no requests, in its words; None where it does. One that has no /health may have /live,
        and one that has neither answers at least."""
        for path in ("/health", "/live"):
            async with self.session.get(replica.name + path, allow_redirects=False) as answer:
                if answer.status == 200:
                    return None
                if answer.status not in (404, 405):
                    return f"{path} answers {answer.status}{_message(await answer.content.read(4096))}"
        return None


async def addresses_of(name: str) -> list[str] | None:
    """A URL for each address of the host in a URL: a Find."""
    parts = urlsplit(name)
    port = parts.port or 80
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:  # and so it is while none is ready: those known are asked for themselves
        log.debug("%s has no address: %s", parts.hostname, error.strerror)
        return None
    hosts = [address[4][0] for address in found]
    return [f"http://{f'[{host}]' if ':' in str(host) else host}:{port}{parts.path}" for host in hosts]


def _message(body: bytes) -> str:
    """What an error's envelope says."""
    try:
        return f", {msgspec.json.decode(body)['error']['message']}"[:200]
    except (msgspec.MsgspecError, UnicodeError, KeyError, TypeError):
        return ""
