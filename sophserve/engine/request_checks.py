"""What a request is checked against and made complete with before it is queued."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from sophserve.engine.request import Item
from sophserve.errors import ContextLengthError, RequestError
from sophserve.link.messages import ModelInfo
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer


def bad_word_ids(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    """The token sequences of each word, at the start of a text and after a space. The answers to one request share
    them."""
    return _bad_word_ids(tokenizer, tuple(words)) if words else []


@lru_cache(8)
def _bad_word_ids(tokenizer: Tokenizer, words: tuple[str, ...]) -> list[list[int]]:
    texts = [text for word in words for text in (word.strip(), " " + word.strip())]
    return [list(ids) for ids in dict.fromkeys(tuple(tokenizer.encode(text, False)) for text in texts)]


def check_request(prompt: list[int], params: SamplingParams, info: ModelInfo, image_tokens: int = 0) -> None:
    """Raise RequestError for what could never be generated. image_tokens: how many of the prompt's are images."""
    longest = info.max_model_len
    smaller = " or send fewer or smaller images" if image_tokens else ""
    images = f" ({image_tokens} of them for images)" if image_tokens else ""
    if not info.generates:
        raise RequestError("this model has no head, so it only makes embeddings; use /v1/embeddings", "model")
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token", "prompt")
    least = 0 if params.max_tokens == 0 else 1
    if len(prompt) + least > longest:
        needs = ", and the answer needs at least one" if least else ""
        raise ContextLengthError(
            longest,
            f"the prompt has {len(prompt)} tokens{images}{needs}; shorten the prompt{smaller}",
            "prompt",
            len(prompt),
            longest - least,
        )
    for name, count in (("max_tokens", params.max_tokens), ("min_tokens", params.min_tokens)):
        if count is not None and len(prompt) + count > longest:
            raise ContextLengthError(
                longest,
                f"you requested {len(prompt) + count} tokens ({len(prompt)} in the prompt{images}, {count} by {name}); "
                f"shorten the prompt or lower {name} to at most {longest - len(prompt)}",
                name,
                len(prompt),
                longest - 1,
            )
    for name, ids in (
        ("prompt", prompt),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
        ("allowed_token_ids", params.allowed_token_ids or []),
        ("prediction", params.prediction),
    ):
        check_ids(name, ids, info.vocab_size)


def check_items(items: Iterable[Item], info: ModelInfo) -> None:
    """Raise RequestError for images that can never be encoded."""
    for number, item in enumerate(items, start=1):
        if info.encoder is None:
            raise RequestError("this model reads text only; leave images out", "messages")
        if item.length > info.encoder.cache_tokens:
            raise RequestError(
                f"image {number} takes {item.length} tokens, and the encoder cache has room for "
                f"{info.encoder.cache_tokens}; send a smaller one, or raise the server's --encoder-cache-memory",
                "messages",
            )


def check_input(tokens: list[int], info: ModelInfo) -> None:
    """Raise RequestError for what has no embedding."""
    if not tokens:
        raise RequestError("the input is empty; give at least one token", "input")
    if len(tokens) > info.max_model_len:
        raise ContextLengthError(
            info.max_model_len,
            f"the input has {len(tokens)} tokens; shorten the input, or send truncate_prompt_tokens",
            "input",
            len(tokens),
            info.max_model_len,
        )
    check_ids("input", tokens, info.vocab_size)


def check_ids(name: str, ids: Collection[int], size: int) -> None:
    """Raise RequestError for a token id that the model does not have."""
    if ids and not (min(ids) >= 0 and max(ids) < size):  # a tenth of the time that a look at each one takes
        wrong = next(token for token in ids if not 0 <= token < size)
        shown = wrong if abs(wrong) < 2**64 else "a number of more than 64 bits"
        raise RequestError(f"{name} has the token id {shown}; ids go from 0 to {size - 1}", name)
