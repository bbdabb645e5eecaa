"""Answers to generation requests, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import msgspec
from aiohttp import web

from sophserve.api.generation.prompts import log_prompts
from sophserve.api.generation.request_bodies import GenerationRequest, StreamOptions
from sophserve.api.generation.run import Answer, Generation
from sophserve.api.generation.served_model import SERVING, Serving
from sophserve.api.http.event_stream import EventStream
from sophserve.api.http.json_pieces import respond_json
from sophserve.api.http.request_record import current_record
from sophserve.engine.output import OutputDelta

Choice = dict[str, Any]
# That are sent at once.
_EVENTS = 16


class Style(Protocol):
    """How an endpoint words its answers. Every method returns one entry of `choices`."""

    kind: str
    chunk_kind: str

    def whole(self, index: int, answer: Answer) -> Choice:
        """A complete choice."""

    def opening(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        """What comes before a choice's first text; delta is its first one."""

    def parts(self, index: int, delta: OutputDelta) -> list[Choice]:
        """What a choice gains, in one chunk or several; none for nothing to show."""

    def silent(self, index: int) -> Choice:
        """What stands for tokens that add nothing."""

    def closing(self, index: int, delta: OutputDelta) -> Choice:
        """The last chunk of a choice, with its finish_reason."""


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


async def recorded_deltas(
    serving: Serving, generation: Generation, usage: Usage
) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """What every choice gains, counted in usage and in the request's record."""
    engine = serving.engine
    log_prompts(serving, generation.id, generation.prompts, generation.params[0])
    record = current_record.get()
    record.prompt_tokens = generation.prompt_tokens
    record.spend(record.prompt_tokens)
    async with aclosing(generation.deltas(engine)) as deltas:
        async for index, delta in deltas:
            usage.add(index, delta)
            record.first_output = record.first_output or time.monotonic()
            record.queue_time = max(record.queue_time, delta.queue_time)
            record.spend(len(delta.token_ids))
            record.output_tokens, record.cached_tokens = usage.output_tokens, usage.cached_tokens
            if delta.finish_reason:
                record.finish_reasons.append(delta.finish_reason)
            yield index, delta


class Reply:
    """The answer to one request on its way out."""

    def __init__(
        self, request: web.Request, generation: Generation, style: Style, model: str, headers: dict[str, str]
    ) -> None:
        self._request = request
        self._generation = generation
        self._style = style
        self._headers = {**headers, "X-Request-Id": generation.id}
        self._usage = Usage(generation)
        self._common = {"id": generation.id, "created": int(time.time()), "model": model}

    async def send(self, body: GenerationRequest) -> web.StreamResponse:
        """Generate, and answer as the request wants it."""
        if body.stream:
            return await self._stream(body.stream_options or StreamOptions(), bool(body.return_token_ids))
        return await self._whole(bool(body.return_token_ids))

    def _deltas(self) -> AsyncGenerator[tuple[int, OutputDelta], None]:
        return recorded_deltas(self._request.app[SERVING], self._generation, self._usage)

    def _prompt(self, index: int) -> list[int]:
        """The prompt of a choice."""
        return self._generation.prompts[index // self._generation.n]

    async def _whole(self, token_ids: bool) -> web.StreamResponse:
        answers = [Answer() for _ in range(len(self._generation.prompts) * self._generation.n)]
        async with aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                answers[index].add(delta)
        choices: list[Choice] = []
        texts = self._request.app[SERVING].texts
        for index, answer in self._generation.chosen(answers):
            worded = await texts.run(partial(self._style.whole, index, answer), len(answer.text))
            choice = {**worded, "index": len(choices)}
            if token_ids:
                choice |= {"token_ids": answer.token_ids, "prompt_token_ids": self._prompt(index)}
            choices.append(choice)
        body = {
            **self._common,
            "object": self._style.kind,
            "choices": choices,
            "usage": self._usage.json(),
        }
        return await respond_json(self._request, body, self._headers)

    async def _stream(self, options: StreamOptions, token_ids: bool) -> web.StreamResponse:
        opened: set[int] = set()
        untold: dict[int, dict[str, list[int]]] = {}  # token ids for the next chunk of a choice
        begun = partial(self._request.app[SERVING].has_begun, self._generation.id)
        async with EventStream(self._request, self._headers, begun) as stream, aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                events: list[bytes] = []
                held: Choice | None = None
                for choice in self._choices(index, delta, opened):
                    if held:
                        events.append(self._events([[held]], options))
                    if len(events) >= _EVENTS:
                        await stream.send(b"".join(events))
                        await asyncio.sleep(0)
                        events = []
                    held = choice
                if token_ids:
                    ids = untold.setdefault(index, {"prompt_token_ids": self._prompt(index)})
                    ids["token_ids"] = ids.get("token_ids", []) + delta.token_ids
                    if held:
                        held |= ids
                        untold[index] = {}
                if held:
                    events.append(self._events([[held]], options))
                if events:
                    await stream.send(b"".join(events))
            usage = self._events([[]], StreamOptions(continuous_usage_stats=True)) if options.include_usage else b""
            await stream.send(usage + b"data: [DONE]\n\n")
        await stream.response.write_eof()
        return stream.response

    def _choices(self, index: int, delta: OutputDelta, opened: set[int]) -> Iterator[Choice]:
        """What a delta adds, one chunk each."""
        if index not in opened:
            opened.add(index)
            yield from self._style.opening(index, delta)
        shown = False
        for choice in self._style.parts(index, delta):
            shown = True
            yield choice
        # Those who measure count chunks, and ask for a fixed length.
        if not shown and delta.token_ids and self._generation.params[0].ignore_eos:
            yield self._style.silent(index)
        if delta.finish_reason:
            yield self._style.closing(index, delta)

    def _events(self, chunks: list[list[Choice]], options: StreamOptions) -> bytes:
        common = {**self._common, "object": self._style.chunk_kind}
        if options.continuous_usage_stats:
            common["usage"] = self._usage.json()
        elif options.include_usage:
            common["usage"] = None
        return b"".join(b"data: %b\n\n" % msgspec.json.encode({**common, "choices": chunk}) for chunk in chunks)
