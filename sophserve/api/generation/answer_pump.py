"""The way of an answer from the engine to its client, whole or as a stream of events."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.event_stream import EventStream
from sophserve.api.http.json_pieces import joined, respond_json
from sophserve.engine.output import OutputDelta

Event = Iterable[bytes]
"""A server-sent event in pieces, which are made when they are sent."""


class Writer(ABC):
    """How an API words an answer: a whole one with `add` and `whole`, a stream with `events` and `ending`. None of its
    steps takes long."""

    @abstractmethod
    def add(self, index: int, delta: OutputDelta) -> None:
        """Take what choice `index` gained."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer once all choices are complete; it may have Rows in it."""

    @abstractmethod
    def events(self, index: int, delta: OutputDelta) -> Iterator[Event]:
        """The events of what choice `index` gained, each of them in pieces."""

    def ending(self) -> bytes:
        """What comes behind all events."""
        return b""


@dataclass
class Reply:
    """What to generate, and in whose words. finished: is done before the end of the last choice goes out."""

    generation: Generation
    writer: Writer
    finished: Callable[[], Awaitable[None]] | None = None

    async def whole(self, served: ServedModel) -> dict[str, Any]:
        """Generate all of it; what comes may have Rows in it. Raises ApiError."""
        async with aclosing(self.generation.deltas(served)) as deltas:
            async for index, delta in deltas:
                self.writer.add(index, delta)
        await self.finish()
        return self.writer.whole()

    async def events(self, served: ServedModel) -> AsyncGenerator[Iterable[Event], None]:
        """Generate, and word each delta as events. Raises ApiError."""
        async with aclosing(self.generation.deltas(served)) as deltas:
            async for index, delta in deltas:
                events: Iterable[Event] = self.writer.events(index, delta)
                if self.finished and delta.finish_reason:
                    events = list(events)
                    await self.finished()
                yield events

    async def finish(self) -> None:
        """Do what there is to do before the end goes out."""
        if self.finished:
            await self.finished()


Begin = Callable[[web.Application, Any], AbstractAsyncContextManager[Reply]]
"""From a body to its answer, which has its place among those that run for as long as the context lasts."""


def whole(begin: Begin) -> Callable[[web.Application, Any], Awaitable[dict[str, Any]]]:
    """From a body to its whole answer, which may have Rows in it, for those who do not ask over HTTP."""

    async def answer(app: web.Application, body: Any) -> dict[str, Any]:
        async with begin(app, body) as begun:
            return await begun.whole(app[SERVED_MODEL])

    return answer


async def send_answer(
    request: web.Request, reply: Reply, stream: bool | None, headers: dict[str, str]
) -> web.StreamResponse:
    """Generate, and answer in the writer's words."""
    served, generation, writer = request.app[SERVED_MODEL], reply.generation, reply.writer
    headers = {**headers, "X-Request-Id": generation.id}
    if not stream:
        return await respond_json(request, await reply.whole(served), headers)
    begun = partial(served.has_begun, generation.id)
    async with EventStream(request, headers, begun) as sent, aclosing(reply.events(served)) as answer:
        async for events in answer:
            more = False
            for data in joined(piece for event in events for piece in event):
                if more:
                    await asyncio.sleep(0)
                await sent.send(data)
                more = True
        if ending := writer.ending():
            await sent.send(ending)
    await sent.response.write_eof()
    return sent.response
