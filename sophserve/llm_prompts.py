"""The prompts that the embedded API takes, in vLLM's shapes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, SupportsIndex, TypedDict, cast

from sophserve.errors import RequestError
from sophserve.text.tokenizer import Tokenizer

_FORMS = "a text, token ids, or a dictionary with 'prompt' or 'prompt_token_ids'"
_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


class TextPrompt(TypedDict):
    """A text. cache_salt: KV blocks are only shared between prompts that have the same one."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """Token ids. prompt: their text, for the output to show. cache_salt: as in TextPrompt."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


Prompt = str | list[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True)
class EnginePrompt:
    """What the engine is given. text: None where only token ids are known. begins_text: see SamplingParams."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""
    begins_text: bool = False


def listed(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or several, as several. Raises RequestError."""
    if isinstance(prompts, str | Mapping):
        return [prompts]  # type: ignore[list-item]
    try:
        many: list[Any] = list(prompts)
    except TypeError:
        raise _not_a_prompt(prompts) from None
    return [many] if many and isinstance(many[0], SupportsIndex) else many


def engine_prompt(prompt: Prompt, tokenizer: Tokenizer) -> EnginePrompt:
    """A prompt in any of the forms. Raises RequestError, which names the key of a dictionary that is wrong."""
    if isinstance(prompt, str):
        return EnginePrompt(prompt, tokenizer.encode(prompt))
    if not isinstance(prompt, Mapping):
        return EnginePrompt(None, _token_ids(prompt))
    fields = cast("Mapping[str, Any]", prompt)
    for key, value in fields.items():
        if key not in _KEYS and value is not None:
            raise RequestError(f"{key} of a prompt is not supported; leave it out", key)
    text, ids, salt = (fields.get(key) for key in _KEYS)
    if text is None and ids is None:
        raise RequestError("a prompt that is a dictionary needs the key 'prompt' or 'prompt_token_ids'", "prompt")
    for key, value in (("prompt", text), ("cache_salt", salt)):
        if not isinstance(value, str | None):
            raise RequestError(f"{key} of a prompt must be a text, got {type(value).__name__}", key)
    token_ids = tokenizer.encode(text or "") if ids is None else _token_ids(ids)
    return EnginePrompt(text, token_ids, salt or "")


def _token_ids(given: Any) -> list[int]:
    try:
        return list(map(operator.index, given))
    except TypeError:
        raise _not_a_prompt(given) from None


def _not_a_prompt(given: object) -> RequestError:
    return RequestError(f"a prompt must be {_FORMS}, got {type(given).__name__}", "prompt")
