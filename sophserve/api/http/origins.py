"""Which web pages may make a browser send requests: the server's own, and those that --allowed-origins names."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.http.connections import CONNECTIONS
from sophserve.api.http.error_middleware import Handler
from sophserve.api.http.errors import ApiError
from sophserve.config import ServerConfig

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def refuse_foreign_pages(config: ServerConfig) -> Middleware:
    """Middleware for a server without keys, where whoever reaches it may use it: a web page of any site can make the
    reader's browser reach it. 403 for whatever changes something on behalf of such a page."""
    local = not config.uds and (config.host == "localhost" or _is_loopback(config.host))

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in _READING and _is_foreign(request, config.allowed_origins, local):
            request.app[CONNECTIONS].refused["origin"] += 1
            raise ApiError(
                403,
                "pages of this origin may not call the server; name it with --allowed-origins, or set an API key",
                code="foreign_origin",
            )
        return await handler(request)

    return middleware


def _is_foreign(request: web.Request, allowed: list[str], local: bool) -> bool:
    """Whether a page of another site makes the request. Browsers always send an Origin with one that changes something,
    other clients none."""
    origin = request.headers.get("Origin")
    if origin is None or "*" in allowed or origin in allowed:
        return False
    scheme, _, name = origin.lower().partition("://")
    if name and scheme not in ("http", "https"):
        return False  # an application or an extension, which somebody has installed
    if local and scheme == "http" and not _is_own(name):
        return True  # even if the Host says so too: a page can give its own name the address 127.0.0.1 (DNS rebinding)
    # What the browser itself says, under whatever name a proxy asks; pages cannot set it.
    if request.headers.get("Sec-Fetch-Site") in ("same-origin", "none"):
        return False
    return name not in {request.headers.get(header, "").lower() for header in ("Host", "X-Forwarded-Host")} - {""}


def _is_own(netloc: str) -> bool:
    """Whether a name can only mean this machine, or one that its user knows: nobody can give an address, or a name
    without a dot, another meaning."""
    try:
        name = (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return False
    return "." not in name or name.endswith(".localhost") or name == socket.gethostname().lower() or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback
