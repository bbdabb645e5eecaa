"""What the handlers share: the engine, the tokenizer, and who may come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from sophserve.api.generation.places import Places
from sophserve.api.http.connections import Connections
from sophserve.api.http.deadlines import NOW, Deadlines
from sophserve.api.http.errors import ApiError
from sophserve.api.http.text_threads import TextThreads
from sophserve.config import ServerConfig
from sophserve.engine.engine import Engine
from sophserve.link.messages import Pooling
from sophserve.media.loader import ImageLoader
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer


class ServedModel:
    """One model being served. The fields above the constructor are set while loading, before the engine is ready.

    sampling_defaults: fields of SamplingParams that the checkpoint sets. characters_per_token: how many characters of
    a text one token stands for at most, None where unknown. pooling: how embeddings are made. images: None for a model
    that sees none.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    sampling_defaults: dict[str, Any]
    characters_per_token: int | None
    pooling: Pooling = "last"
    images: ImageLoader | None = None

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.model_names = config.served_model_name or [engine.config.model]
        self.created, self.started = int(time.time()), time.monotonic()
        self.connections = Connections(config)
        self.places = Places(engine.config.max_num_seqs + config.max_queued_requests)
        self.draining = False
        self.texts = TextThreads()
        self._deadlines = Deadlines()

    @asynccontextmanager
    async def admitted(self, sequences: int, timeout: float | None = None) -> AsyncIterator[None]:
        """Hold the place of a request that generates so many sequences. Raises ApiError when there is none, here or
        for its API key, when another client needs it more, when timeout seconds have passed, or when the server stops
        before the request is done."""
        if self.draining:
            raise _stopping()
        with self.places.take(sequences) as place:
            place.deadline = deadline = asyncio.timeout(timeout)
            try:
                with self._deadlines.hold(deadline):
                    async with deadline:
                        yield
            except TimeoutError:
                if place.given_up:
                    raise self.places.refusal() from None
                if deadline.when() == NOW:
                    raise _stopping() from None
                if deadline.expired():
                    raise ApiError(
                        408, f"the request took longer than its timeout of {timeout:g} s", code="timeout"
                    ) from None
                raise

    def has_begun(self, identity: str) -> bool:
        """Whether a request is not refused any more for the time that it waits."""
        if self.engine.config.max_queue_time is None:
            return True
        return all(each.timeline.scheduled for each in self.engine.sequences if each.request_id == identity)

    async def drain(self, seconds: float) -> None:
        """Let no new request in, wait for the running ones, and after that time end them with an error."""
        self.draining = True
        await self._deadlines.drain(seconds)

    async def close(self) -> None:
        """End its threads and processes."""
        self.texts.close()
        if self.images:
            await self.images.close()

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError for a name that is not served."""
        if name is None:
            return self.model_names[0]
        if name not in self.model_names:
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this server has {', '.join(self.model_names)}",
                code="model_not_found",
                param="model",
            )
        return name


def _stopping() -> ApiError:
    return ApiError(503, "the server stops before this request is done", code="stopping")


SERVED_MODEL = web.AppKey("served_model", ServedModel)
