"""Prompts with images: where each stands, and as how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sophserve.engine.request import Item
from sophserve.errors import RequestError
from sophserve.media.loader import Picture
from sophserve.media.processor import ImageProcessor
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.placeholders import split, tokens_between
from sophserve.text.tokenizer import Tokenizer


class ImagePrompt(NamedTuple):
    """What the engine is given. items: the images, in the order of their places."""

    ids: list[int]
    items: tuple[Item, ...] = ()


def template_with_images(
    directory: Path, tokenizer: Tokenizer, override: str | None, processor: ImageProcessor | None
) -> ChatTemplate:
    """The chat template of a checkpoint, or that in the file override. Raises CheckpointError and ConfigError."""
    path = Path(override) if override else None
    if processor is None:
        return ChatTemplate.from_directory(directory, tokenizer, path)
    return ChatTemplate.from_directory(directory, tokenizer, path, processor.placeholder, processor.chat_template)


def image_prompt(
    text: str | list[int],
    pictures: Sequence[Picture],
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    add_special_tokens: bool = False,
    param: str = "messages",
) -> ImagePrompt:
    """A text or token ids, in which a placeholder stands for each picture. param: the field that they come from.
    Raises RequestError where there are more or fewer of them."""
    placeholder, token = processor.placeholder, processor.placeholder_id
    if isinstance(text, str):
        between = tokens_between(tokenizer, text, placeholder, token, add_special_tokens)
    else:
        between = split(text, token)
    if len(between) - 1 != len(pictures):
        raise RequestError(
            f"{placeholder} is {len(between) - 1} times in the prompt, for {len(pictures)} images; it stands for an "
            "image, so no text may have it for anything else",
            param,
        )
    ids = between[0]
    items: list[Item] = []
    for picture, following in zip(pictures, between[1:], strict=True):
        items.append(Item(picture.digest, len(ids), picture.shape, picture.pixels))
        ids += [token] * picture.shape.tokens
        ids += following
    return ImagePrompt(ids, tuple(items))


def lacks_opening(rendered: str, tokenizer: Tokenizer, processor: ImageProcessor | None) -> bool:
    """Whether the tokenizer is to add its special tokens to a rendered conversation: as transformers' processors, of a
    model that sees, unless the template has begun with one. Those of LLaVA-NeXT leave it out."""
    return processor is not None and not (tokenizer.bos_token and rendered.startswith(tokenizer.bos_token))


def cut_prompt(prompt: ImagePrompt, most: int, side: str) -> ImagePrompt:
    """The last `most` tokens, or with side right the first ones. An image that would be cut through is left out."""
    ids, items = prompt
    start, end = (0, most) if side == "right" else (max(0, len(ids) - most), len(ids))
    end = next((item.start for item in items if item.start < end < item.end), end)
    start = next((item.end for item in items if item.start < start < item.end), start)
    inside = [item for item in items if start <= item.start and item.end <= end]
    return ImagePrompt(ids[start:end], tuple(replace(item, start=item.start - start) for item in inside))


def without_images(ids: list[int], items: Sequence[Item]) -> list[int]:
    """The token ids of a prompt, in which one placeholder stands for each image."""
    left: list[int] = []
    start = 0
    for item in items:
        left += ids[start : item.start + 1]
        start = item.end
    return left + ids[start:]


def image_tokens(items: Sequence[Item]) -> int:
    """How many tokens of a prompt stand for images."""
    return sum(item.shape.tokens for item in items)
