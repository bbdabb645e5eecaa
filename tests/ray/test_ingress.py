"""What stands between Ray's proxy and the router: ASGI on one side, HTTP on the other; without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sophserve.ray.ingress import Forward


class Client:
    """Ray's proxy, with one request. sent: what the application answered; pieces: of the request's body."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate(pieces, 1)
        ] + [{"type": "http.disconnect"}]

    async def receive(self) -> dict[str, Any]:
        return self._messages.pop(0)

    async def send(self, message: Any) -> None:
        await self.sent.put(message)


def scope(method: str = "POST", path: str = "/v1/completions", **more: Any) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", **more}


@pytest.fixture
async def forward(tmp_path: Path) -> AsyncIterator[tuple[Forward, list[Any], asyncio.Event]]:
    """One before a server that notes what it is asked, and that it is cancelled. It answers in two pieces, between
    which the event has to be set."""
    seen: list[Any] = []
    gate = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.rel_url.raw_path_qs, request.headers, await request.read()))
        headers = {"Content-Type": "text/event-stream", "Server": "s", "X-Request-Id": "r", "X-Own": "yes"}
        response = web.StreamResponse(status=201, headers=headers)
        response.headers.add("X-Own", "twice")
        try:
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            await gate.wait()
            await response.write(b"data: 2\n\n")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    found = Forward(str(tmp_path / "s"))
    yield found, seen, gate
    await found.close()
    await runner.cleanup()


async def test_a_request_and_its_answer_pass_piece_by_piece(forward: Any) -> None:
    application, seen, gate = forward
    client = Client(b'{"prompt"', b': "x"}')
    headers = [(b"content-length", b"15"), (b"content-type", b"application/json"), (b"x-forwarded-for", b"10.0.0.1")]
    asked = scope(
        path="/llm/v1/a%20b",
        raw_path=b"/llm/v1/a%20b",
        root_path="/llm",
        query_string=b"q=%2F",
        headers=[*headers, (b"host", b"me:80"), (b"connection", b"keep-alive")],
        client=("10.0.0.2", 1),
        scheme="https",
    )
    call = asyncio.create_task(application(asked, client.receive, client.send))
    start = await client.sent.get()
    assert start["type"] == "http.response.start" and start["status"] == 201
    assert {(b"x-own", b"yes"), (b"x-own", b"twice"), (b"content-type", b"text/event-stream")} <= set(start["headers"])
    assert not {b"server", b"date", b"x-request-id", b"transfer-encoding"} & {name for name, _ in start["headers"]}
    assert (await client.sent.get())["body"] == b"data: 1\n\n", "before there is a second piece"
    gate.set()
    await call
    assert (await client.sent.get())["body"] == b"data: 2\n\n"
    assert await client.sent.get() == {"type": "http.response.body"} and client.sent.empty()
    [(method, url, received, body)] = seen
    assert (method, url, body) == ("POST", "/v1/a%20b?q=%2F", b'{"prompt": "x"}')
    assert received["Host"] == "me:80" and received["Content-Length"] == "15"
    assert received["X-Forwarded-For"] == "10.0.0.1, 10.0.0.2" and received["X-Forwarded-Proto"] == "https"


async def test_a_client_that_goes_away_ends_its_request(forward: Any) -> None:
    application, seen, _ = forward
    client = Client()
    call = asyncio.create_task(application(scope("GET"), client.receive, client.send))
    await client.sent.get(), await client.sent.get()
    call.cancel()  # as Ray does it
    async with asyncio.timeout(10):
        while "cancelled" not in seen:
            await asyncio.sleep(0.01)


async def test_a_request_without_an_end_is_none(forward: Any) -> None:
    application, seen, _ = forward
    client = Client(b"half")
    client._messages[0]["more_body"] = True
    with pytest.raises(aiohttp.ClientOSError):
        await application(scope(headers=[(b"transfer-encoding", b"chunked")]), client.receive, client.send)
    assert seen == [] and client.sent.empty()


async def test_an_answer_without_an_end_has_none(forward: Any, tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "t")).start()
    application, client = Forward(str(tmp_path / "t")), Client()
    with pytest.raises(aiohttp.ClientPayloadError):
        await application(scope("GET", "/"), client.receive, client.send)
    sent = [client.sent.get_nowait() for _ in range(client.sent.qsize())]
    assert {"type": "http.response.body"} not in sent
    await application.close()
    await runner.cleanup()
