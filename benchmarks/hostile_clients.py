"""Clients whose behaviour is hostile rather than their words: how they connect, read, leave and come back. Each takes a
running server and a size, and says how often which answer came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from benchmarks.running import Running

COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
LIMIT = 45.0  # seconds after which they give up

Found = Counter[str]


def prompt(**more: Any) -> dict[str, Any]:
    """The body of a completion."""
    return {"prompt": "hi", "max_tokens": 1} | more


def text(size: int) -> str:
    """So many bytes of prose."""
    return ("the cat sat on a mat. " * (size // 22 + 1))[:size]


def new_session() -> ClientSession:
    """One that makes a connection for each request, and waits for ever."""
    return ClientSession(connector=TCPConnector(limit=0, force_close=True), timeout=ClientTimeout(None))


async def status(session: ClientSession, url: str, data: bytes, limit: float = LIMIT) -> str:
    """Post, read the whole answer, and say its status, or what came instead of one."""
    try:
        async with asyncio.timeout(limit), session.post(url, data=data) as response:
            async for _ in response.content.iter_any():
                pass
            return str(response.status)
    except TimeoutError:
        return "left"
    except (OSError, ClientError) as error:
        return type(error).__name__


async def unread(server: Running, size: int) -> Found:
    """So many streams of long answers whose readers do not read."""
    sent = json.dumps(prompt(stream=True, n=32, max_tokens=400, logprobs=20, ignore_eos=True)).encode()
    return await _hold(server, size, _post(COMPLETIONS, len(sent)) + sent, window=4096)


async def unread_whole(server: Running, size: int) -> Found:
    """The same of answers that are not streamed."""
    sent = json.dumps(prompt(n=32, max_tokens=400, logprobs=20, ignore_eos=True)).encode()
    return await _hold(server, size, _post(COMPLETIONS, len(sent)) + sent, window=4096)


async def unfinished(server: Running, size: int) -> Found:
    """So many uploads that announce 31 MB, send 30 and stop."""
    return await _hold(server, size, _post(COMPLETIONS, 31_000_000) + b"x" * 30_000_000)


async def silent(server: Running, size: int) -> Found:
    """So many connections that say nothing."""
    return await _hold(server, size, b"")


async def half_headers(server: Running, size: int) -> Found:
    """So many connections that stop in the middle of a header."""
    return await _hold(server, size, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-")


async def all_connections(server: Running, size: int) -> Found:
    """So many idle, half as many half-sent (a header each), and a tenth unread."""
    kinds = (silent(server, size), half_headers(server, size // 4), unread(server, size // 10))
    return sum(await asyncio.gather(*kinds), Counter())


def _post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


async def _hold(server: Running, count: int, data: bytes, window: int | None = None, seconds: float = 8) -> Found:
    """Open connections, send, and keep them for some seconds."""
    found: Found = Counter()
    async with contextlib.AsyncExitStack() as stack:
        for start in range(0, count, 50):
            opened = (_open(server, data, window) for _ in range(min(50, count - start)))
            for each in await asyncio.gather(*opened):
                found["held" if each else "refused"] += 1
                if each:
                    stack.callback(each.close)
        await asyncio.sleep(seconds)
    return found


async def _open(server: Running, data: bytes, window: int | None) -> socket.socket | None:
    loop = asyncio.get_running_loop()
    where = urlsplit(server.url)
    port = where.port
    for family, kind, protocol, _, address in await loop.getaddrinfo(where.hostname, port, type=socket.SOCK_STREAM):
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        if window:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            async with asyncio.timeout(10):
                await loop.sock_connect(opened, address)
                await loop.sock_sendall(opened, data)
        except (OSError, TimeoutError):
            opened.close()
        else:
            return opened
    return None


async def cancel_storm(server: Running, size: int) -> Found:
    """So many streams, 50 at a time, whose clients leave at the first bytes."""
    found: Found = Counter()
    sent = json.dumps(prompt(stream=True, n=4, max_tokens=500, ignore_eos=True)).encode()

    async def client(session: ClientSession, share: int) -> None:
        for _ in range(share):
            try:
                async with asyncio.timeout(LIMIT), session.post(server.url + COMPLETIONS, data=sent) as response:
                    await response.content.readany()
                    found[str(response.status)] += 1
                    response.close()
            except (OSError, ClientError, TimeoutError) as error:
                found[type(error).__name__] += 1

    async with new_session() as session:
        await asyncio.gather(*(client(session, size // 50) for _ in range(50)))
    return found


async def many_tiny(server: Running, size: int) -> Found:
    """So many of the smallest requests, 50 at a time."""
    found: Found = Counter()
    sent = json.dumps(prompt()).encode()

    async def client(session: ClientSession, share: int) -> None:
        for _ in range(share):
            found[await status(session, server.url + COMPLETIONS, sent)] += 1

    async with new_session() as session:
        await asyncio.gather(*(client(session, size // 50) for _ in range(50)))
    return found


async def waiting_listed(server: Running, size: int) -> Found:
    """So many requests that wait, while /requests and /metrics are asked for ten times a second."""
    sent = json.dumps(prompt(stream=True, max_tokens=1500, ignore_eos=True)).encode()
    holding = asyncio.create_task(_hold(server, size, _post(COMPLETIONS, len(sent)) + sent))
    found: Found = Counter()
    async with new_session() as session:
        while not holding.done():
            for path in ("/requests", "/metrics"):
                async with session.get(server.url + path) as response:
                    await response.read()
                    found[f"{path} {response.status}"] += 1
            await asyncio.sleep(0.1)
    return found + await holding


async def long_header(server: Running, size: int) -> Found:
    """A request whose headers take so many bytes."""
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(size // 1010))
    return await _hold(server, 20, b"GET /health HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n", seconds=1)


async def killed_worker(server: Running, size: int) -> Found:
    """A worker that dies, so many times, two seconds apart."""
    for _ in range(size):
        if server.workers:
            os.kill(server.workers[0], signal.SIGKILL)
        await asyncio.sleep(3)
    return Counter({"killed": size})


async def stored_chain(server: Running, size: int) -> Found:
    """So many answers of Responses, each of which goes on from the one before, with a long text in each."""
    found: Found = Counter()
    before: dict[str, Any] = {}
    async with new_session() as session:
        for _ in range(size):
            sent = {"input": text(100), "max_output_tokens": 1, "truncation": "auto"} | before
            async with asyncio.timeout(LIMIT), session.post(server.url + RESPONSES, json=sent) as response:
                answer = await response.json()
                found[str(response.status)] += 1
            if response.status != 200:
                break
            before = {"previous_response_id": answer["id"]}
    return found
