"""`sophserve load` and `sophserve chat` before servers that are none, or do what a server should not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sophserve.bench import load
from sophserve.chat.client import Client
from sophserve.errors import SophserveError
from sophserve.http_client import key_header


def http(body: Any, status: str = "200 OK", kind: str = "application/json", *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


def stream(*events: Any) -> bytes:
    data = b"".join(b"data: %b\n\n" % (e if isinstance(e, bytes) else json.dumps(e).encode()) for e in events)
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + data


def said(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


MODELS = http({"data": [{"id": "m"}]})
GOOD = stream(said("Hi"), said("", "stop"), b"[DONE]")
Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers = []

    async def start(models: bytes, chat: bytes) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(models if head.startswith(b"GET") else chat)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


async def chat(url: str) -> str:
    async with Client(url) as client:
        [model] = await client.models(lambda reason: None)
        client.choose(model)
        return "".join([piece.content async for piece in client.stream([{"role": "user", "content": "Hi"}], {})])


@pytest.mark.parametrize(
    ("models", "answer", "loading", "chatting"),
    [
        (b"", b"", "connection lost: server disconnected", "server disconnected"),
        (b"SSH-2.0-x\r\n", b"", "what it sends is not HTTP: bad status line", "not HTTP: bad status line"),
        (http(b"<html>", kind="text/html"), b"", "not OpenAI's format", "is not a list of models; check --url"),
        (http(None), b"", "names no model: give --model", "is not a list of models"),
        (http({"data": [{"id": None}]}), b"", "names no model: give --model", "is not a list of models"),
        (http({"error": "who?"}, "401 U"), b"", r"give --api-key \(who\?\)", r"give --api-key \(who\?\)"),
        (http(b"", "302 F", "a/b", "Location: http://x/"), b"", "redirects to http://x/", "redirects to http://x/"),
        (MODELS, http(b"hello", kind="text/plain"), "not OpenAI's format", "the answer broke off"),
        (MODELS, http({"error": "nope"}), "error in the answer: nope", "nope"),
        (MODELS, stream({"error": {"message": "broken"}}), "broken", "broken"),
        (MODELS, stream(b"\xff"), "not OpenAI's format", "no chunk of an answer"),
        (MODELS, stream(said("Hi")), "cut off: the answer ended without", "the answer broke off"),
        (MODELS, http(said("Hi"), "200 OK", "a/b", "Content-Encoding: gzip"), "connection lost: ", "broke off: "),
        (
            MODELS,
            stream(said("Hi", "stop") | {"usage": {"prompt_tokens": -3}}),
            "not OpenAI's format: Expected `int` >= 0",
            None,
        ),
    ],
)
async def test_what_is_no_server_is_named(
    serve: Serve, models: bytes, answer: bytes, loading: str, chatting: str | None
) -> None:
    url = await serve(models, answer)
    with pytest.raises(SophserveError, match=f"(?i){loading}") as caught:
        await load.run(load.parse(["--url", url, "--num-requests", "2"]))
    assert "\n" not in str(caught.value)
    if chatting:
        with pytest.raises(SophserveError, match=f"(?i){chatting}") as caught:
            await chat(url)
        assert "\n" not in str(caught.value)


async def test_what_is_unusual_is_read(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 3_000_000
    whole = http({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})
    for answer, text in (
        (GOOD, "Hi"),
        (stream(said("Hi"), b"[DONE]"), "Hi"),
        (stream(said(long, "stop")), long),
        (whole, "Hi"),
    ):
        url = await serve(MODELS, answer)
        assert await chat(url) == text
        assert await load.run(load.parse(["--url", url, "--num-requests", "2", "--input-length", "5"])) == 0
    # A server that streams nothing and counts nothing: no figure is made up.
    report = capsys.readouterr().out.rpartition("completed")[2]
    assert "tokens         not known" in report and "tokens  0" not in report and "TTFT" not in report


async def test_nobody_answers_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SophserveError, match="timeout: no complete answer"):
            await load.run(load.parse(["--url", url, "--timeout", "0.2"]))


def test_keys() -> None:
    assert key_header(" secret\n") == {"Authorization": "Bearer secret"} and key_header("") == key_header(None) == {}
    with pytest.raises(SophserveError, match="line break"):
        key_header("a\r\nX-Evil: b")


def test_files_are_looked_at_before_the_load(tmp_path: Any) -> None:
    for arguments, words in (
        (["--save-json", str(tmp_path)], "is a directory"),
        (["--input-length", "1000000000000"], "--input-length must be at most 10000000"),
    ):
        with pytest.raises(SophserveError, match=words):
            load.parse(arguments)
