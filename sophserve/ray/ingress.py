"""Ray Serve's ingress: the router of `sophserve route`, and between it and Ray's proxy what translates."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sophserve.api.http.connections import Connections
from sophserve.options import server_config
from sophserve.route.headers import end_to_end
from sophserve.route.replicas import Replicas
from sophserve.route.router import Router
from sophserve.route.serving import listening

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Seconds for replicas to say where they are, and for one to come where there is none, as when the only one is replaced.
_PATIENCE, _PATIENCE_FOR_REPLICA = 5.0, 60.0
# Ray's proxy has its own, the last one that of the request, which the replica has answered under.
_OF_THE_PROXY = frozenset({"date", "server", "x-request-id"})


class Ingress:
    """Ray Serve's callable. servers: the handle of the replicas. options: of the router, by the names of ServerConfig's
    fields. Made, it knows the replicas."""

    async def __init__(self, servers: Any, options: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        self._servers = servers
        self._stack = AsyncExitStack()
        directory = tempfile.mkdtemp(prefix="sophserve-")
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        config = server_config({**options, "uds": str(Path(directory, "router"))})
        self._router = Router(Replicas(find=self._find), Connections(config), _PATIENCE_FOR_REPLICA)
        await self._router.replicas.look()
        await self._stack.enter_async_context(listening(self._router))
        self._forward = Forward(str(config.uds))
        self._stack.push_async_callback(self._forward.close)

    def __serve_build_asgi_app__(self) -> Forward:
        return self._forward

    async def _find(self) -> Collection[str] | None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import DeploymentUnavailableError

        try:
            found = await self._servers.broadcast("address").results_async(timeout_s=_PATIENCE, return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        except (RayError, TimeoutError):
            return None
        return [url for url in found if isinstance(url, str)]

    async def __del__(self) -> None:
        """Ray's last word, when all requests have been answered."""
        await self._stack.aclose()


class Forward:
    """An ASGI application (https://asgi.readthedocs.io) that is the server at a Unix socket."""

    def __init__(self, path: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )

    async def close(self) -> None:
        await self._session.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, piece by piece as it comes. Cancelled, it ends the request at the server."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        has_body = "Content-Length" in headers or any(name == b"transfer-encoding" for name, _ in scope["headers"])
        async with self._session.request(
            scope["method"],
            _url(scope),
            headers=headers,
            data=_body(receive) if has_body else None,
            allow_redirects=False,
        ) as answer:
            found = end_to_end(answer.headers, _OF_THE_PROXY)
            raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in found.items()]
            await send({"type": "http.response.start", "status": answer.status, "headers": raw})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body"})


def _headers(scope: Message) -> CIMultiDict[str]:
    """Those of the request, and who asked Ray's proxy."""
    given = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    found = end_to_end(given, frozenset({"expect"}))
    if client := scope.get("client"):
        came_by = found.get("X-Forwarded-For")
        found["X-Forwarded-For"] = f"{came_by}, {client[0]}" if came_by else client[0]
    found.setdefault("X-Forwarded-Proto", scope.get("scheme", "http"))
    return found


def _url(scope: Message) -> URL:
    """Without the prefix under which Ray shows the application."""
    path = scope.get("raw_path") or scope["path"].encode()
    path = path.removeprefix(scope.get("root_path", "").encode()) or b"/"
    query = b"?" + scope["query_string"] if scope.get("query_string") else b""
    return URL("http://router" + (path + query).decode("latin-1"), encoded=True)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while (message := await receive())["type"] == "http.request":
        yield message.get("body", b"")
        if not message.get("more_body"):
            return
    raise ConnectionResetError("the client went away amid its request")
