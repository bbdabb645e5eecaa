"""A generation request after its text has become tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from sophserve.api.generation.places import Place
from sophserve.api.generation.prompts import log_prompts
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import Record, current_record
from sophserve.engine.engine import Engine
from sophserve.engine.interleave import interleave
from sophserve.engine.output import OutputDelta
from sophserve.engine.request import Item
from sophserve.errors import EngineDeadError, RequestAborted
from sophserve.image_prompt import image_tokens, without_images
from sophserve.sampling import SamplingParams

# Whose logprobs are worded at once.
_TOKENS = 64


@contextmanager
def engine_errors(engine: Engine) -> Iterator[None]:
    """Raise what the engine raises as ApiError."""
    try:
        yield
    except RequestAborted as error:
        # 499 is what proxies log for a request that the client's side gave up.
        status, headers = (503, {"Retry-After": "1"}) if error.code == "queue_timeout" else (499, None)
        raise ApiError(status, str(error), code=error.code, headers=headers) from None
    except EngineDeadError as error:
        if engine.died.is_set():
            raise ApiError(503, str(error), code="engine_dead") from None
        raise ApiError(500, str(error), code="generation_failed") from None


@dataclass
class Generation:
    """What to generate: params.n answers to every prompt, each prompt with its own params. Answer i of prompt p is
    choice `p * n + i`. priority and cache_salt: see Engine.generate. items: the images of every prompt, empty where
    none has any. output_tokens: those that have come; reasoning_tokens: those of them that belong to a thought;
    accepted_tokens: those of them that were guessed; rejected_tokens: guesses that were computed in vain."""

    id: str
    prompts: list[list[int]]
    params: list[SamplingParams]
    priority: int = 0
    cache_salt: str = ""
    items: Sequence[Sequence[Item]] = ()
    output_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    _cached: dict[int, int] = field(default_factory=dict)  # by the first choice of each prompt

    @property
    def n(self) -> int:
        """Answers to each prompt."""
        return self.params[0].n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def image_tokens(self) -> int:
        """Those of them that stand for images."""
        return sum(map(image_tokens, self.items))

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose keys and values were there already."""
        return sum(self._cached.values())

    def usage(self) -> dict[str, Any]:
        """The `usage` object of what there is so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **self.image_details()},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.rejected_tokens,
            },
        }

    def image_details(self) -> dict[str, int]:
        """What a usage says of images, where there are any."""
        images = self.image_tokens
        return {"text_tokens": self.prompt_tokens - images, "image_tokens": images} if images else {}

    async def deltas(self, served: ServedModel) -> AsyncGenerator[tuple[int, OutputDelta], None]:
        """What every choice gains, as it comes, counted here and in the request's record. Closing the iterator aborts
        all. Raises ApiError if the engine ends an answer before it is complete."""
        record, engine = current_record.get(), served.engine
        items = self.items or [()] * len(self.prompts)
        log_prompts(served, self.id, list(map(without_images, self.prompts, items)), self.params[0])
        record.prompt_tokens, record.image_tokens = self.prompt_tokens, self.image_tokens
        record.spend(record.prompt_tokens)
        priority = self.priority + record.priority
        place = record.answers if isinstance(record.answers, Place) else None
        salt, background, owner = self.cache_salt, record.background, record.account.key.name if record.account else ""
        answers = [
            engine.generate(prompt, params, self.id, index, priority, salt, place, background, shown, owner)
            for prompt, params, shown in zip(self.prompts, self.params, items, strict=True)
            for index in range(self.n)
        ]
        with engine_errors(engine):
            async with aclosing(interleave(answers)) as merged:
                async for choice, delta in merged:
                    if delta.finish_reason == "abort":
                        raise ApiError(503, "the server stopped before the answer was complete", code="stopping")
                    for part in _parts(delta):
                        self._count(choice, part, record)
                        yield choice, part
                    if len(delta.token_ids) > _TOKENS:
                        await asyncio.sleep(0)

    def _count(self, choice: int, delta: OutputDelta, record: Record) -> None:
        self.output_tokens += len(delta.token_ids)
        self.reasoning_tokens += delta.reasoning_tokens
        self.accepted_tokens += delta.accepted_tokens
        self.rejected_tokens += delta.rejected_tokens
        if choice % self.n == 0:  # further answers to a prompt find in the cache what the first one put there
            self._cached.setdefault(choice, delta.cached_tokens)
        record.first_output = record.first_output or time.monotonic()
        record.queue_time = max(record.queue_time, delta.queue_time)
        record.spend(len(delta.token_ids))
        record.output_tokens, record.cached_tokens = self.output_tokens, self.cached_tokens
        record.accepted_tokens, record.rejected_tokens = self.accepted_tokens, self.rejected_tokens
        if delta.finish_reason:
            record.finish_reasons.append(delta.finish_reason)


def _parts(delta: OutputDelta) -> Iterator[OutputDelta]:
    """A delta of which a reader was slow to take, in several: logprobs take long to word. The text comes with the
    last one."""
    last = delta
    while last.logprobs is not None and len(last.logprobs) > _TOKENS:
        yield replace(
            last,
            text="",
            token_ids=last.token_ids[:_TOKENS],
            logprobs=last.logprobs[:_TOKENS],
            reasoning_tokens=0,
            accepted_tokens=0,
            rejected_tokens=0,
            finish_reason=None,
            stop_reason=None,
        )
        last = replace(last, token_ids=last.token_ids[_TOKENS:], logprobs=last.logprobs[_TOKENS:], prompt_logprobs=None)
    yield last
