"""What /v1/responses and /v1/messages share: named server-sent events, and answers that are not split into choices."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.reply import Usage, recorded_deltas
from sophserve.api.generation.request_bodies import ResponseFormat
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVING
from sophserve.api.http.event_stream import EventStream
from sophserve.api.http.json_pieces import joined, pieces, respond_json
from sophserve.engine.output import OutputDelta

Event = dict[str, Any]


class Exchange:
    """One answer to a request on its way out."""

    def __init__(self, request: web.Request, generation: Generation, headers: dict[str, str]) -> None:
        self._request = request
        self._generation = generation
        self._headers = {**headers, "X-Request-Id": generation.id}
        self.usage = Usage(generation)

    async def whole(self, events: Callable[[OutputDelta], Iterator[Event]]) -> None:
        """Make the events of all deltas, and send none of them."""
        async with aclosing(self._deltas()) as deltas:
            async for _, delta in deltas:
                deque(events(delta), maxlen=0)

    async def respond(self, body: dict[str, Any]) -> web.StreamResponse:
        """Send a body as JSON."""
        return await respond_json(self._request, body, self._headers)

    async def stream(
        self, events: Callable[[OutputDelta], Iterator[Event]], finished: Callable[[], Awaitable[None]] | None = None
    ) -> web.StreamResponse:
        """Send the events that each delta makes; the name of an event is its type. finished is done before the last
        ones are sent."""
        begun = partial(self._request.app[SERVING].has_begun, self._generation.id)
        async with EventStream(self._request, self._headers, begun) as stream, aclosing(self._deltas()) as deltas:
            async for _, delta in deltas:
                made = list(events(delta))
                if delta.finish_reason and finished:
                    await finished()
                for data in _in_chunks(made):
                    await stream.send(data)
                    await asyncio.sleep(0)
        await stream.response.write_eof()
        return stream.response

    def _deltas(self) -> AsyncGenerator[tuple[int, OutputDelta], None]:
        return recorded_deltas(self._request.app[SERVING], self._generation, self.usage)


def _in_chunks(events: list[Event]) -> Iterator[bytes]:
    """What is sent of some events: at once if it is short, else a piece at a time."""
    return joined(
        piece for event in events for piece in (b"event: %b\ndata: " % event["type"].encode(), *pieces(event), b"\n\n")
    )


class OutputFormat(msgspec.Struct):
    """What form the text must have: `text`, `json_object`, or `json_schema` with the schema."""

    type: str
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None

    def response_format(self) -> ResponseFormat:
        """The same as chat completions have it."""
        nested = {"json_schema": msgspec.to_builtins(self)} if self.schema is not None else {}
        return msgspec.convert({"type": self.type, **nested}, ResponseFormat)
