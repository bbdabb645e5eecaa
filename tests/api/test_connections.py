"""One client cannot hold all: with answers that it does not read, half requests, silence, or too many connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import pytest
from prometheus_client import generate_latest

from sophserve.api.http.listener import Listener, bind, connection_limit
from sophserve.api.http.upload import _Upload
from sophserve.config import ServerConfig
from sophserve.engine.output import OutputDelta
from sophserve.engine.request import Item, Request
from sophserve.engine.sequence import Sequence, Watcher
from sophserve.sampling import SamplingParams

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
BODIES = {
    TEXT: {"prompt": "Hi", "n": 2},
    CHAT: {"messages": HELLO},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
}
# More than the system keeps for a connection on its own.
LONG = "x" * 12_000_000


def answer_at_once(app: Any, text: str = LONG) -> None:
    """The engine is done with every answer before anybody reads it."""

    async def generate(
        prompt: list[int],
        params: SamplingParams,
        request_id: str,
        index: int = 0,
        priority: int = 0,
        cache_salt: str = "",
        watcher: Watcher | None = None,
        background: bool = False,
        items: Iterable[Item] = (),
        owner: str = "",
    ) -> AsyncGenerator[OutputDelta, None]:
        assert watcher
        sequence = Sequence(Request(0, prompt, params, 0, 1, []), app.tokenizer, request_id, index)
        watcher.begin_one(sequence)
        watcher.end_one(sequence)
        yield OutputDelta(text=text, token_ids=[70], finish_reason="length")

    app.engine.generate = generate


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


class Client:
    """A connection that does what it is told, and no more."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def ask(self, path: str, body: dict[str, Any], *headers: str) -> None:
        await self.send(post(path, json.dumps(body).encode(), *headers))

    async def read(self) -> bytes:
        """All there is, until the server closes."""
        found = b""
        async with asyncio.timeout(20):
            try:
                while part := await asyncio.get_running_loop().sock_recv(self._socket, 2**20):
                    found += part
            except ConnectionResetError:
                pass
        return found

    async def read_some(self) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self._socket, 2**16)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def connect() -> Any:
    clients = []

    def make(app: Any) -> Client:
        clients.append(Client(app.port))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def live(app: Any) -> list[dict[str, Any]]:
    async with app.http.get("/requests") as response:
        return (await response.json())["requests"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_nobody_reads_keeps_no_place(
    start_app: Any, connect: Any, path: str, stream: bool
) -> None:
    app = await start_app(engine={"max_num_seqs": 1}, max_queued_requests=1, unread_memory="1GiB")
    answer_at_once(app)
    client = connect(app)
    await client.ask(path, BODIES[path] | {"stream": stream}, "X-Request-Id: deaf")
    await until(lambda: any(connection.blocked for connection in app.serving.connections.open))
    [entry] = await live(app)
    assert (entry["id"], entry["state"]) == ("deaf", "sending")
    assert entry["unsent_bytes"] > 1_000_000 and 0 <= entry["age"] < 60
    answer_at_once(app, "short")
    for body in (BODIES[TEXT], BODIES[TEXT] | {"stream": True}):
        async with app.http.post(TEXT, json=body) as response:
            assert response.status == 200 and "short" in await response.text()
    async with app.http.post("/requests/deaf/cancel") as response:
        assert response.status == 200
    assert len(await client.read()) < 10_000_000
    await until(lambda: len(app.serving.connections.open) == 1)
    assert await live(app) == [] and app.serving.connections.unread.total == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_cut_when_no_more_of_it_is_taken(start_app: Any, connect: Any, stream: bool) -> None:
    app = await start_app(write_timeout=0.4)
    answer_at_once(app)
    client = connect(app)
    await client.ask(TEXT, BODIES[TEXT] | {"stream": stream})
    await until(lambda: app.serving.connections.refused["write_timeout"] == 1)
    await until(lambda: not app.serving.connections.open)
    # Who reads, however slowly, gets all of it.
    answer_at_once(app, LONG[:6_000_000])
    client = connect(app)
    await client.ask(TEXT, BODIES[CHAT] | {"prompt": "Hi", "stream": stream}, "Connection: close")
    found, loop = 0, asyncio.get_running_loop()
    start = loop.time()
    while part := await client.read_some():
        found += len(part)
        if loop.time() - start < 1.2:
            await asyncio.sleep(0.002)
    assert found > 6_000_000 and loop.time() - start > 1.2
    assert app.serving.connections.refused["write_timeout"] == 1


async def test_unread_answers_have_a_limit_together(start_app: Any, connect: Any) -> None:
    app = await start_app(unread_memory="24MB", api_key=["a", "b"])
    answer_at_once(app)
    connections = app.serving.connections
    deaf = [connect(app) for _ in range(3)]
    for number, (client, key) in enumerate(zip(deaf, "aba", strict=True), start=1):
        await client.ask(CHAT, BODIES[CHAT], f"x-api-key: {key}")
        await until(lambda n=number: n * 8e6 < connections.unread.total or connections.refused["unread_memory"] == 1)
    await until(lambda: len(connections.open) == 2)
    # The key that held most has lost the one that has waited longest.
    assert connections.refused["unread_memory"] == 1
    assert {connection.client for connection in connections.open} == {"key key-1", "key key-2"}
    assert len(await deaf[0].read()) < 10_000_000


async def test_what_is_begun_has_to_go_on(start_app: Any, connect: Any) -> None:
    limit = 0.5
    app = await start_app(header_timeout=limit, body_timeout=limit, keep_alive_timeout=limit, write_timeout=limit)
    app.engine.gate.clear()
    loop, connections = asyncio.get_running_loop(), app.serving.connections
    start = loop.time()
    silent, half, trickle, idle, waiting, slow = (connect(app) for _ in range(6))
    await half.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
    await trickle.send(post(TEXT, b'{"prompt":', length=100_000))
    await idle.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await waiting.ask(TEXT, {"prompt": "Hi", "max_tokens": 1}, "Connection: close")
    body = json.dumps({"prompt": "Hi", "max_tokens": 1, "user": "x" * 200_000}).encode()
    await slow.send(post(TEXT, b"", "Connection: close", length=len(body)))

    async def send_slowly() -> None:
        for place in range(0, len(body), 20_000):
            await asyncio.sleep(limit / 4)
            await slow.send(body[place : place + 20_000])

    async def send_bytes() -> bytes:
        for _ in range(100):
            try:
                await trickle.send(b" ")
            except ConnectionError:
                break
            await asyncio.sleep(limit / 10)
        return b""

    sending, dripping = asyncio.create_task(send_slowly()), asyncio.create_task(send_bytes())
    assert await silent.read() == await half.read() == b""
    assert b" 200 " in await idle.read()
    refused = await trickle.read_some()
    assert b" 408 " in refused and b"Connection: close" in refused and b"did not come within" in refused
    dripping.cancel()
    assert connections.refused["header_timeout"] == 2 and connections.refused["body_timeout"] == 1
    await sending
    app.engine.gate.set()
    # Neither who waits for an answer nor whose body comes steadily is over the time.
    assert loop.time() - start > 2 * limit
    assert b" 200 " in await waiting.read() and b" 200 " in await slow.read()


async def test_a_header_has_an_end(app: Any, connect: Any) -> None:
    client = connect(app)
    await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    try:
        for number in range(100):
            await client.send(b"X-%d: %b\r\n" % (number, b"x" * 2000))
    except ConnectionError:
        pass
    await until(lambda: not app.serving.connections.open)
    # A body of any size is no header, and nor is what follows a refusal.
    body = {"prompt": "Hi", "max_tokens": 1, "user": "x" * 1_000_000}
    assert (await app.post(TEXT, body))[0] == 200
    assert (await app.post("/nowhere", body))[0] == 404


async def test_bodies_have_a_limit_together(start_app: Any, connect: Any) -> None:
    app = await start_app(upload_memory="1MB", api_key=["a", "b"])
    uploads = app.serving.connections.uploads
    first, second = connect(app), connect(app)
    half = post(TEXT, b" " * 450_000, "x-api-key: a", length=900_000)
    await first.send(half)
    await until(lambda: uploads.total == 450_000)
    await second.send(half)
    await until(lambda: uploads.total == 900_000)
    body = {"prompt": "Hi", "max_tokens": 1, "user": "x" * 400_000}
    assert (await app.post(TEXT, body, headers={"x-api-key": "b"}))[0] == 200
    refused = await first.read_some()
    assert b" 429 " in refused and b"Retry-After: 1" in refused and b"Connection: close" in refused
    await until(lambda: uploads.total == 450_000)
    # Who is alone may have everything, and no more.
    await second.send(b" " * 440_000)
    await until(lambda: uploads.total == 890_000)
    third = connect(app)
    await third.send(half)
    assert b" 429 " in await second.read_some()
    assert app.serving.connections.refused["upload_memory"] == 2


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
async def test_what_will_not_be_taken_is_not_asked_for(start_app: Any, connect: Any, expect: tuple[str, ...]) -> None:
    app = await start_app(api_key=["secret"])
    for key, length, status in (("secret", 40_000_000, 413), ("wrong", 100, 401)):
        client = connect(app)
        await client.send(post(TEXT, b"", f"x-api-key: {key}", *expect, length=length))
        answer = await client.read_some()
        assert f"HTTP/1.1 {status} ".encode() in answer and b"100 Continue" not in answer
    body = json.dumps({"prompt": "Hi", "max_tokens": 1}).encode()
    client = connect(app)
    await client.send(post(TEXT, b"", "x-api-key: secret", "Connection: close", *expect, length=len(body)))
    if expect:
        assert await client.read_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(body)
    assert b"HTTP/1.1 200 " in await client.read()
    client = connect(app)
    await client.send(post(TEXT, b"", "x-api-key: secret", "Expect: cake", length=len(body)))
    assert b" 417 " in await client.read_some()


@pytest.fixture
async def listen(start_app: Any) -> Any:
    """`await listen(most, **server options)`: an application that takes that many connections."""
    listeners = []

    async def start(most: int, **options: Any) -> Any:
        app = await start_app(**options)
        sockets = bind(ServerConfig(host="127.0.0.1", port=0))
        listeners.append(Listener(app.runner.factory, sockets, app.serving.connections, most))
        app.port = listeners[-1].port
        return app

    yield start
    for listener in listeners:
        listener.close()


async def answer(app: Any, request: bytes = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_idle_connections_make_room(listen: Any, connect: Any) -> None:
    app = await listen(8)
    idle = [connect(app) for _ in range(40)]
    await idle[39].send(b"GET /hea")
    for _ in range(12):
        async with asyncio.timeout(20):
            assert (await answer(app)).startswith(b"HTTP/1.1 200 ")
    connections = app.serving.connections
    assert len(connections.open) <= 8 and connections.refused["too_many_connections"] >= 33
    assert await idle[0].read() == b""


async def test_clients_wait_where_no_connection_is_idle(listen: Any, connect: Any) -> None:
    app = await listen(3)
    app.engine.gate.clear()
    busy = [connect(app) for _ in range(3)]
    for client in busy:
        await client.ask(TEXT, {"prompt": "Hi", "max_tokens": 1}, "Connection: close")
    await app.until_running(3)
    waiting = [asyncio.create_task(answer(app)) for _ in range(20)]
    await asyncio.sleep(0.2)
    assert len(app.serving.connections.open) == 3 and not any(task.done() for task in waiting)
    app.engine.gate.set()
    async with asyncio.timeout(20):
        assert all(found.startswith(b"HTTP/1.1 200 ") for found in await asyncio.gather(*waiting))
    for client in busy:
        assert b" 200 " in await client.read()


async def test_who_stands_still_makes_room(listen: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.api.http.connections._STANDSTILL", 0.3)
    app = await listen(4)
    answer_at_once(app)
    clients = [connect(app) for _ in range(4)]
    for client in clients[:2]:
        await client.send(post(TEXT, b"{", length=1000))
    for client in clients[2:]:
        await client.ask(CHAT, BODIES[CHAT])
    for _ in range(5):
        async with asyncio.timeout(20):
            assert (await answer(app)).startswith(b"HTTP/1.1 200 ")


def test_descriptors_are_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.api.http.listener.resource.getrlimit", lambda which: (100_000, 100_000))
    assert connection_limit(8192, 8) == 8192
    monkeypatch.setattr("sophserve.api.http.listener.resource.getrlimit", lambda which: (500, 500))
    one, two = connection_limit(8192, 1), connection_limit(8192, 2)
    assert 200 < two == one - 40 < 500 - 24 - 80
    monkeypatch.setattr("sophserve.api.http.listener.resource.getrlimit", lambda which: (5, 5))
    assert connection_limit(8192, 1) == 1


async def test_nobody_fills_the_queue_for_others(start_app: Any) -> None:
    app = await start_app(engine={"max_num_seqs": 2}, max_queued_requests=6, api_key=["a", "b", "c"])
    app.engine.gate.clear()

    async def ask(key: str, **fields: Any) -> int:
        body = {"prompt": "Hi", "max_tokens": 1, **fields}
        async with app.http.post(TEXT, json=body, headers={"x-api-key": key}) as response:
            return response.status

    flood = [asyncio.create_task(ask("a", stream=number % 2 == 1)) for number in range(8)]
    await app.until_running(8)
    assert await ask("a") == 429
    others = [asyncio.create_task(ask(key, n=2)) for key in "bc"]
    async with asyncio.timeout(20):
        assert await flood[7] == await flood[6] == await flood[5] == await flood[4] == 429
    assert await ask("a") == 429
    # Nor does a client that has as many as the others get more.
    assert await ask("b", n=3) == 429
    app.engine.gate.set()
    assert await asyncio.gather(*flood[:4]) == [200] * 4
    assert await asyncio.gather(*others) == [200] * 2
    assert app.serving.places.used == 0 and not app.serving.places.taken


async def test_metrics(start_app: Any, connect: Any) -> None:
    app = await start_app()
    client = connect(app)
    await client.send(post(TEXT, b" " * 1000, length=2000))
    await until(lambda: app.serving.connections.uploads.total == 1000)
    await app.post("/requests/x/cancel", {}, headers={"Origin": "http://evil.example"})
    text = generate_latest(app.serving.connections.registry).decode()
    assert "sophserve:connections_open 2.0" in text and "sophserve:connections_idle 1.0" in text
    assert "sophserve:upload_bytes 1000.0" in text and "sophserve:unread_bytes 0.0" in text
    assert 'sophserve:refused_total{reason="origin"} 1.0' in text


async def test_headers_tell_no_versions(app: Any, connect: Any) -> None:
    for method, path, body in (("GET", "/health", None), ("POST", TEXT, {"prompt": "Hi", "stream": True})):
        async with app.http.request(method, path, json=body) as response:
            assert response.headers["Server"] == "sophserve"
    client = connect(app)
    await client.send(b"nonsense\r\n\r\n")
    found = await client.read()
    assert b"Server: sophserve" in found and b"Python" not in found


async def test_codings_are_not_case_sensitive(app: Any) -> None:
    body = {"prompt": "Hi", "max_tokens": 1}
    assert (await app.post(TEXT, body, headers={"Content-Encoding": "Identity"}))[0] == 200


async def test_a_body_that_is_complete_cannot_give_way_any_more(start_app: Callable[..., Any]) -> None:
    app = await start_app()
    content = asyncio.StreamReader()
    content.readany = lambda: content.read(1 << 16)  # type: ignore[attr-defined]
    content.feed_data(b"{}")
    content.feed_eof()
    upload = _Upload("client", app.serving.connections, None)
    assert await upload.read(content) == b"{}"  # type: ignore[arg-type]
    upload.give_way()
