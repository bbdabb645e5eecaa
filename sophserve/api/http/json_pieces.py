"""JSON a piece at a time: an answer of any size is made while it is sent, and holds up nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.http.request_record import name_request

# Entries of a list that are encoded with one call.
_SLICE = 4096
# Bytes that are sent at once, and seconds of computing after which there may be fewer.
CHUNK = 1 << 16
_SECONDS = 0.005


class Rows:
    """A list in JSON whose entries are made when they are needed. sources: what they are made of, one after the other;
    make: from a part of one source to the entries for it. size: how many are made at a time."""

    def __init__(self, make: Callable[[Any], list[Any]], *sources: Sequence[Any], size: int = 64) -> None:
        self._make = make
        self._sources = sources
        self._size = size

    def slices(self) -> Iterator[list[Any]]:
        for source in self._sources:
            for start in range(0, len(source), self._size):
                yield self._make(source[start : start + self._size])


def pieces(value: Any) -> Iterator[bytes]:
    """The JSON of a value that may have Rows in it. None of the pieces takes long to make."""
    if isinstance(value, dict):
        separator = b"{"
        for name, item in value.items():
            yield separator + msgspec.json.encode(name) + b":"
            yield from pieces(item)
            separator = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        separator = b"["
        for item in value:
            yield separator
            yield from pieces(item)
            separator = b","
        yield b"]"
    elif isinstance(value, list):
        yield from _sliced(value[start : start + _SLICE] for start in range(0, len(value), _SLICE))
    elif isinstance(value, Rows):
        yield from _sliced(value.slices())
    else:
        yield msgspec.json.encode(value)


def joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in larger pieces, of which none takes long to make."""
    held: list[bytes] = []
    size, begun = 0, time.thread_time()
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= CHUNK or time.thread_time() - begun >= _SECONDS:
            yield b"".join(held)
            held, size, begun = [], 0, time.thread_time()
    if held:
        yield b"".join(held)


async def respond_json(
    request: web.Request, value: Any, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """An answer of status 200: whole if it is short, else in pieces as the client takes them."""
    made = joined(pieces(value))
    first, second = next(made), next(made, None)
    if second is None:
        return web.Response(body=first, content_type="application/json", headers=headers)
    response = web.StreamResponse(headers={"X-Request-Id": name_request("req-"), **(headers or {})})
    response.content_type = "application/json"
    await response.prepare(request)
    try:
        await response.write(first)
        await response.write(second)
        for chunk in made:
            await response.write(chunk)
            await asyncio.sleep(0)  # a client that reads fast lets write return at once
        await response.write_eof()
    except BaseException:
        # What has gone out cannot be taken back: no error may follow it as if it were an answer.
        if request.transport:
            request.transport.abort()
        raise
    return response


def _sliced(slices: Iterator[list[Any]]) -> Iterator[bytes]:
    separator = b"["
    for part in slices:
        if part:
            yield separator + msgspec.json.encode(part)[1:-1]
            separator = b","
    yield b"[]" if separator == b"[" else b"]"
