"""The way of an answer from the engine to its client, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from aiohttp import web

from sophserve.api.generation.prompts import log_prompts
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.event_stream import EventStream
from sophserve.api.http.json_pieces import joined, respond_json
from sophserve.api.http.request_record import current_record
from sophserve.api.http.text_threads import TextThreads
from sophserve.engine.output import OutputDelta

Event = Iterable[bytes]
"""A server-sent event in pieces, which are made when they are sent."""


class Writer(ABC):
    """How an API words an answer: a whole one with `add` and `body`, a stream with `events` and `ending`. None of its
    steps takes long."""

    @abstractmethod
    def add(self, index: int, delta: OutputDelta) -> None:
        """Take what choice `index` gained."""

    @abstractmethod
    async def body(self, texts: TextThreads) -> dict[str, Any]:
        """The answer once all choices are complete; it may have Rows in it."""

    @abstractmethod
    def events(self, index: int, delta: OutputDelta) -> Iterator[Event]:
        """The events of what choice `index` gained, each of them in pieces."""

    def ending(self) -> bytes:
        """What comes behind all events."""
        return b""


class Usage:
    """Tokens used so far."""

    def __init__(self, generation: Generation) -> None:
        self.prompt_tokens = generation.prompt_tokens
        self.output_tokens = 0
        self._n = generation.n
        self._cached: dict[int, int] = {}

    def add(self, index: int, delta: OutputDelta) -> None:
        """Count what a choice gained."""
        self.output_tokens += len(delta.token_ids)
        if index % self._n == 0:  # further answers to a prompt find in the cache what the first one put there
            self._cached.setdefault(index, delta.cached_tokens)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose keys and values were there already."""
        return sum(self._cached.values())

    def json(self) -> dict[str, Any]:
        """The `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class AnswerPump:
    """One request while it is answered."""

    def __init__(self, request: web.Request, generation: Generation, headers: dict[str, str]) -> None:
        self.usage = Usage(generation)
        self._request = request
        self._serving = request.app[SERVED_MODEL]
        self._generation = generation
        self._headers = {**headers, "X-Request-Id": generation.id}

    async def send(
        self, writer: Writer, stream: bool | None, finished: Callable[[], Awaitable[None]] | None = None
    ) -> web.StreamResponse:
        """Generate, and answer in the writer's words. finished: is done before the end of the last choice goes out."""
        if stream:
            return await self._stream(writer, finished)
        async with aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                writer.add(index, delta)
        body = await writer.body(self._serving.texts)
        if finished:
            await finished()
        return await respond_json(self._request, body, self._headers)

    async def _stream(self, writer: Writer, finished: Callable[[], Awaitable[None]] | None) -> web.StreamResponse:
        begun = partial(self._serving.has_begun, self._generation.id)
        async with EventStream(self._request, self._headers, begun) as stream, aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                events: Iterable[Event] = writer.events(index, delta)
                if finished and delta.finish_reason:
                    events = list(events)
                    await finished()
                more = False
                for data in joined(piece for event in events for piece in event):
                    if more:
                        await asyncio.sleep(0)
                    await stream.send(data)
                    more = True
            if ending := writer.ending():
                await stream.send(ending)
        await stream.response.write_eof()
        return stream.response

    async def _deltas(self) -> AsyncGenerator[tuple[int, OutputDelta], None]:
        """What every choice gains, counted in usage and in the request's record."""
        generation, usage, record = self._generation, self.usage, current_record.get()
        log_prompts(self._serving, generation.id, generation.prompts, generation.params[0])
        record.prompt_tokens = generation.prompt_tokens
        record.spend(record.prompt_tokens)
        async with aclosing(generation.deltas(self._serving.engine)) as deltas:
            async for index, delta in deltas:
                usage.add(index, delta)
                record.first_output = record.first_output or time.monotonic()
                record.queue_time = max(record.queue_time, delta.queue_time)
                record.spend(len(delta.token_ids))
                record.output_tokens, record.cached_tokens = usage.output_tokens, usage.cached_tokens
                if delta.finish_reason:
                    record.finish_reasons.append(delta.finish_reason)
                yield index, delta
