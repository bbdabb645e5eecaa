"""Prompts of an exact length, from texts that come with sophserve."""

from __future__ import annotations

import random
from importlib.resources import files

from sophserve.errors import ConfigError
from sophserve.image_prompt import lacks_opening
from sophserve.media.processor import ImageProcessor
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.placeholders import tokens_between
from sophserve.text.tokenizer import Tokenizer

TEXTS = ("serving.en.txt", "serving.zh.txt")
# Attempts at a conversation of the length that is asked for: a cut may change the tokens beside it.
_ATTEMPTS = 8


def read_texts() -> str:
    """All of them, one after the other."""
    folder = files("sophserve.bench") / "texts"
    return "\n\n".join((folder / name).read_text(encoding="utf-8") for name in TEXTS)


def make_prompts(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    count: int,
    length: int,
    seed: int,
    processor: ImageProcessor | None = None,
) -> list[list[int]]:
    """Prompts of `length` tokens that begin at different places of the texts; with a template, conversations.

    With a processor of images each has one more token, before its text, that stands for an image. A conversation may be
    a token or two shorter. Raises ConfigError for a length that leaves no room for a text.
    """
    ids = tokenizer.encode(read_texts(), add_special_tokens=False)
    chosen = random.Random(seed)
    starts = [chosen.randrange(len(ids)) for _ in range(count)]

    def part(start: int, size: int) -> list[int]:
        return [ids[(start + place) % len(ids)] for place in range(size)]

    if template is not None:
        return [_conversation(tokenizer, template, part(start, length), length, processor) for start in starts]
    # What a tokenizer puts before every text.
    before = tokenizer.encode("")
    if length <= len(before):
        raise ConfigError(f"--input-length is {length}, but the tokenizer adds {len(before)} tokens to every prompt")
    image = [] if processor is None else [processor.placeholder_id]
    return [[*before, *image, *part(start, length - len(before))] for start in starts]


def _conversation(
    tokenizer: Tokenizer, template: ChatTemplate, text: list[int], length: int, processor: ImageProcessor | None
) -> list[int]:
    def rendered(size: int) -> list[int]:
        content = tokenizer.decode(text[:size])
        if processor is None:
            prompt = template.render([{"role": "user", "content": content}])
            return tokenizer.encode(prompt, add_special_tokens=False)
        parts = [{"type": "image", "image": 0}, {"type": "text", "text": content}]
        prompt = template.render([{"role": "user", "content": parts}])
        token, special = processor.placeholder_id, lacks_opening(prompt, tokenizer, processor)
        before, after = tokens_between(tokenizer, prompt, processor.placeholder, token, special)
        return [*before, token, *after]

    length += processor is not None
    overhead = len(rendered(0))
    if overhead >= length:
        raise ConfigError(
            f"--input-length leaves {length} tokens for a prompt, but the chat template alone takes {overhead}"
        )
    size, best = length - overhead, rendered(0)
    for _ in range(_ATTEMPTS):
        found = rendered(size)
        if len(best) < len(found) <= length:
            best = found
        if len(found) == length:
            break
        size = max(0, min(len(text), size + length - len(found)))
    return best
