"""The playground: a page at / to chat with the model and to watch the server. It calls the same API as any client."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from aiohttp import web

from sophserve.api.http.error_middleware import Handler

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {
    "/" if path.name == "index.html" else f"/playground/{path.name}": path
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _TYPES
}
PATHS = frozenset(_FILES)
"""What the page consists of. It answers without a key, and while the model loads."""

_HEADERS = {
    # Nothing but the page's own files and the API that it comes with; model text cannot become markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again each time, by its ETag
}


def routes(root_path: str) -> list[web.RouteDef]:
    """The page's routes, also below the path under which a proxy shows the server."""
    prefixes = dict.fromkeys(("", root_path))
    return [web.get(prefix + path, _sender(file)) for prefix in prefixes for path, file in _FILES.items()]


def _sender(file: Path) -> Handler:
    async def send(request: web.Request) -> web.Response:
        body, tag = _read(file)
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=_TYPES[file.suffix], charset="utf-8", headers=headers)

    return send


@cache
def _read(file: Path) -> tuple[bytes, str]:
    body = file.read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
