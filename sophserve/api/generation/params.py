"""The sampling parameters of a request: its own, else the checkpoint's, else ours."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from sophserve.api.generation.request_bodies import GenerationRequest
from sophserve.api.generation.structured_output import structured_output
from sophserve.errors import RequestError
from sophserve.sampling import SamplingParams

# Seconds.
LONGEST_TIMEOUT = 86_400

_SAME_NAME = [name for name in SamplingParams.__struct_fields__ if name in GenerationRequest.__struct_fields__]
_MOST = {"stop_token_ids": 1024, "logit_bias": 1024, "allowed_token_ids": 100_000}
# Of texts: how many, and how many characters each may have and all together.
_MOST_TEXTS = {"stop": (64, 1000, 8000), "bad_words": (128, 200, 8000)}


def sampling_params(
    body: GenerationRequest, defaults: dict[str, Any], logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """SamplingParams for a request; defaults are fields of it. Raises RequestError."""
    _check_supported(body)
    fields = defaults | {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):  # the last one given wins
        if (value := getattr(body, name)) is not None:
            fields["max_tokens"] = value
    fields |= {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs, "structured": structured_output(body)}
    try:
        return SamplingParams(**fields)
    except ValueError as error:
        raise RequestError(str(error), str(error).partition(" ")[0]) from None


def fitted(params: SamplingParams, body: GenerationRequest, prompt: list[int], context: int) -> SamplingParams:
    """params, where a default length that is more than the rest of the context is cut to that. A length that the
    request itself asks for is left alone, for the engine to refuse it."""
    asked = any(value is not None for value in (body.max_tokens, body.max_completion_tokens, body.max_new_tokens))
    fits = len(prompt) + (params.max_tokens or 0) <= context
    return params if asked or fits else replace(params, max_tokens=None)


def _check_supported(body: GenerationRequest) -> None:
    if body.stream_options and not body.stream:
        raise RequestError("stream_options needs stream: true", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs cannot be streamed; leave out stream", "prompt_logprobs")
    if body.timeout is not None and not 0 < body.timeout <= LONGEST_TIMEOUT:
        raise RequestError(f"timeout must be above 0 and at most {LONGEST_TIMEOUT}, got {body.timeout:g}", "timeout")
    for name, most in _MOST.items():
        if (value := getattr(body, name)) is not None:
            _check_count(name, len(value), most)
    for name in _MOST_TEXTS:
        check_texts(name, getattr(body, name))


def check_texts(name: str, texts: str | list[str] | None, field: str | None = None) -> None:
    """Raise RequestError for texts that are too many or too long. field: what the API calls those of that name."""
    count, most, together = _MOST_TEXTS[name]
    texts, field = [texts] if isinstance(texts, str) else texts or [], field or name
    _check_count(field, len(texts), count)
    longest = max(map(len, texts), default=0)
    if longest > most:
        raise RequestError(f"{field} has a text of {longest} characters; at most {most} are possible", field)
    if (total := sum(map(len, texts))) > together:
        raise RequestError(f"{field} has {total} characters together; at most {together} are possible", field)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise RequestError(f"{name} has {count} entries; at most {most} are possible", name)
