"""Fetches images that requests name by URL: from allowed hosts alone, at public addresses alone, within limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from sophserve.http_client import what_failed
from sophserve.media.limits import MediaLimits

MOST_REDIRECTS = 3
# Images that are fetched at once; further ones wait their turn.
_AT_ONCE = 16
# Each looks names up in a thread of its own: those of the server are for other things.
_LOOKUPS = 4
_PIECE = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
# Where IPv4 addresses are behind IPv6 ones (RFC 6052).
_TRANSLATED = IPv6Network("64:ff9b::/96")


class CannotFetch(Exception):
    """Why, in words that go on from `the image`."""


class _NotPublic(OSError):
    """A host is at an address that is not on the public internet."""


def is_public(address: str) -> bool:
    """Whether an address is on the public internet: what is not may be a service that trusts this machine."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped or found.sixtofour or found.teredo:
            return False
        if found in _TRANSLATED:
            found = IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global and not (found.is_multicast or found.is_reserved)


Lookup = Callable[[str, int], Awaitable[Sequence[tuple[int, str]]]]
"""Families and addresses of a host. Raises OSError."""


class PublicResolver(AbstractResolver):
    """Finds hosts for aiohttp, which connects to the very addresses that were looked at here."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, "lookup")
        self._lookup = lookup or self._system_lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._lookup(host, port)
        if not all(is_public(address) for _, address in found):
            raise _NotPublic
        flags = socket.AI_NUMERICHOST
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=flags)
            for kind, address in found
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _system_lookup(self, host: str, port: int) -> Sequence[tuple[int, str]]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [(family, str(address[0])) for family, _, _, _, address in found]


class ImageFetcher:
    """Fetches over connections of its own, without cookies, credentials or a proxy of the environment."""

    def __init__(self, limits: MediaLimits, resolver: AbstractResolver | None = None) -> None:
        self._limits = limits
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, url: str) -> bytes:
        """The file at a URL. Raises CannotFetch."""
        target = self._checked(url)
        async with self._turns:
            try:
                async with asyncio.timeout(self._limits.fetch_seconds):
                    for _ in range(MOST_REDIRECTS + 1):
                        found = await self._get(target)
                        if isinstance(found, bytes):
                            return found
                        target = self._checked(found, target)
            except TimeoutError:
                seconds = f"{self._limits.fetch_seconds:g} s"
                raise CannotFetch(
                    f"did not come from {target.host} within the {seconds} that it may take (--image-fetch-timeout)"
                ) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise CannotFetch(f"cannot be fetched from {target.host}: {_reason(error)}") from None
        raise CannotFetch(f"is behind more than {MOST_REDIRECTS} redirects")

    async def close(self) -> None:
        """End what is under way."""
        if self._session:
            await self._session.close()

    def _checked(self, given: str, base: URL | None = None) -> URL:
        """A URL that may be fetched. base: where it was found. Raises CannotFetch."""
        try:
            url = URL(given) if base is None else base.join(URL(given))
            host = (url.raw_host or "").rstrip(".").lower()
            port = url.port
        except ValueError:
            host, port = "", None
        if not host or port is None or url.scheme not in ("http", "https"):
            raise CannotFetch(f"has a URL that is none of http or https: {given[:100]!r}")
        if url.raw_user is not None or url.raw_password is not None:
            raise CannotFetch("has a URL with a user or password in it, which is not fetched; leave them out")
        if not any(domain.covers(host, port) for domain in self._limits.domains):
            allowed = ", ".join(
                domain.host if domain.port is None else f"{domain.host}:{domain.port}"
                for domain in self._limits.domains
            )
            at = "" if url.is_default_port() else f":{port}"
            raise CannotFetch(
                f"is at {host[:100]}{at}, from where images are not fetched (--allowed-media-domains has "
                f"{allowed[:200] or 'none'}); send it as a data URL"
            )
        if _is_address(host) and not is_public(host):
            raise CannotFetch(f"is at {host}, which is not a public address")
        return url.with_fragment(None)

    async def _get(self, url: URL) -> bytes | str:
        """The file, or where it is instead."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver or PublicResolver(), use_dns_cache=False, force_close=True, limit=_AT_ONCE
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "sophserve"},
                auto_decompress=False,
                trust_env=False,
            )
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS:
                return answer.headers.get("Location", "")
            if answer.status != 200:
                raise CannotFetch(f"cannot be fetched from {url.host}: it answers {answer.status}")
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise CannotFetch(f"cannot be fetched from {url.host}: it answers with a Content-Encoding")
            most, data = self._limits.bytes, bytearray()
            size = answer.content_length or 0
            async for piece in answer.content.iter_chunked(_PIECE):
                data += piece
                if max(size, len(data)) > most:
                    has = f"has {size}" if size > most else f"has more than {most}"
                    raise CannotFetch(f"{has} bytes; at most {most} are taken (--max-image-bytes)")
            return bytes(data)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _reason(error: Exception) -> str:
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, _NotPublic) or isinstance(inner.__cause__, _NotPublic):
        return "that is not at a public address"
    return what_failed(error)
