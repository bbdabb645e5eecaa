"""Which headers go on to the other side (RFC 9110, section 7.6.1)."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from multidict import CIMultiDict

# They concern one connection, or are made anew.
_OF_ONE_CONNECTION = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_MADE_ANEW_FOR_REPLICAS = frozenset({"host", "content-length", "expect"})
_MADE_ANEW_FOR_CLIENTS = frozenset({"server", "date"})


def to_replica(request: web.Request) -> CIMultiDict[str]:
    """Those of a request, API keys among them, and who asked the router under which name."""
    found = end_to_end(request.headers, _MADE_ANEW_FOR_REPLICAS)
    came_by = request.headers.get("X-Forwarded-For")
    if request.remote:
        found["X-Forwarded-For"] = f"{came_by}, {request.remote}" if came_by else request.remote
    found.setdefault("X-Forwarded-Host", request.headers.get("Host", ""))
    found.setdefault("X-Forwarded-Proto", request.scheme)
    return found


def to_client(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Those of an answer."""
    return end_to_end(headers, _MADE_ANEW_FOR_CLIENTS)


def end_to_end(headers: Mapping[str, str], made_anew: frozenset[str]) -> CIMultiDict[str]:
    """Headers without those of one connection, and without some more, by their names in small letters."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    found: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        if lower not in _OF_ONE_CONNECTION and lower not in made_anew and lower not in named:
            found.add(name, value)
    return found
