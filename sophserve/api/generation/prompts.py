"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from sophserve.api.generation.request_bodies import GenerationRequest
from sophserve.api.generation.served_model import ServedModel
from sophserve.errors import ContextLengthError, RequestError
from sophserve.image_prompt import ImagePrompt, image_prompt
from sophserve.media.loader import Picture
from sophserve.sampling import SamplingParams

log = logging.getLogger(__name__)
T = TypeVar("T")

# Characters of prompts that are tokenized in one go.
_SLICE = 1 << 15
# No text has more characters, nor more for each token of the context: the tokenizer takes 170 bytes for each.
_MOST_CHARACTERS = 1 << 20
_CHARACTERS_PER_TOKEN = 8
_LOGGED_TOKENS = 2048
_TRUNCATE = "truncate_prompt_tokens"


def listed(prompt: str | list[str | int | list[int]], name: str) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids, from the field of that name. Raises RequestError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError(f"{name} is empty; give a text or token ids", name)
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]  # type: ignore[list-item]
    if int in kinds:
        raise RequestError(f"{name} mixes token ids with texts or lists; give one kind", name)
    return prompt  # type: ignore[return-value]


async def each_in_slices(
    served: ServedModel, items: list[str | list[int]], work: Callable[[str | list[int]], T]
) -> list[T]:
    """What work makes of each prompt. They are gone through a slice at a time: between two, others have their turn, and
    a client that is gone is noticed."""
    made: list[T] = []
    while len(made) < len(items):
        start, end, size = len(made), len(made), 0
        while end < len(items) and (end == start or size + len(items[end]) <= _SLICE):
            size += len(items[end])
            end += 1
        made += await served.texts.run(partial(_each, work, items[start:end]), size)
    return made


def _each(work: Callable[[str | list[int]], T], items: list[str | list[int]]) -> list[T]:
    return list(map(work, items))


def encode(served: ServedModel, text: str, add_special_tokens: bool, bounded: bool = True) -> list[int]:
    """Token ids of a text. Raises RequestError for one that is too long; if bounded, for one that cannot fit in the
    context."""
    _check_length(served, text, bounded)
    return served.tokenizer.encode(text, add_special_tokens)


def encode_with_images(
    served: ServedModel, text: str, pictures: Sequence[Picture], add_special_tokens: bool, bounded: bool = True
) -> ImagePrompt:
    """The same of a text with a placeholder for each picture, where the model sees."""
    if served.images is None:
        return ImagePrompt(encode(served, text, add_special_tokens, bounded))
    _check_length(served, text, bounded)
    return image_prompt(text, pictures, served.tokenizer, served.images.processor, add_special_tokens)


def _check_length(served: ServedModel, text: str, bounded: bool) -> None:
    longest, per_token = served.engine.info.max_model_len, served.characters_per_token
    if bounded and per_token and len(text) > longest * per_token:
        least = math.ceil(len(text) / per_token)
        problem = f"the prompt has {len(text)} characters, at least {least} tokens; shorten the prompt"
        raise ContextLengthError(longest, problem, "prompt", least, longest)
    most = max(_MOST_CHARACTERS, longest * _CHARACTERS_PER_TOKEN)
    if len(text) > most:
        problem = f"the prompt has {len(text)} characters; at most {most} are possible"
        raise ContextLengthError(longest, problem, "prompt", 0, longest) if bounded else RequestError(problem, "prompt")


def log_prompts(
    served: ServedModel, identity: str, prompts: list[list[int]], params: SamplingParams | None = None
) -> None:
    """Log what a request asks of the model, where the operator wants that."""
    if not served.config.log_requests:
        return
    for prompt in prompts:
        text = served.tokenizer.decode(prompt[:_LOGGED_TOKENS], skip_special_tokens=False)
        more = f" and {len(prompt) - _LOGGED_TOKENS} further tokens" if len(prompt) > _LOGGED_TOKENS else ""
        fields = {"id": identity, "prompt": text, "params": msgspec.to_builtins(params)}
        log.info("%s asks %r%s, %s", identity, text, more, fields["params"], extra={"fields": fields})


def truncated(prompt: list[int], body: GenerationRequest, context: int) -> list[int]:
    """What truncate_prompt_tokens leaves of a prompt; -1 leaves as many tokens as fit beside the answer. Raises
    RequestError."""
    asked = (body.max_completion_tokens, body.max_tokens, body.max_new_tokens)
    answer = next((count for count in asked if count is not None), 1)
    return cut(prompt, body.truncate_prompt_tokens, body.truncation_side or "left", max(1, context - answer))


def cut(prompt: list[int], most: int | None, side: str, fitting: int) -> list[int]:
    """The last `most` tokens, or with side right the first ones; None is all, -1 as many as are fitting. Raises
    RequestError."""
    if side not in ("left", "right"):
        raise RequestError(f"truncation_side must be left or right, got {side!r}", "truncation_side")
    if most is None:
        return prompt
    if most < 1 and most != -1:
        raise RequestError(f"truncate_prompt_tokens must be at least 1, or -1 for what fits, got {most}", _TRUNCATE)
    most = fitting if most == -1 else most
    return prompt[:most] if side == "right" else prompt[-most:]
