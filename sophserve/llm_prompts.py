"""The prompts that the embedded API takes, in vLLM's shapes."""

from __future__ import annotations

import io
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, SupportsIndex, TypedDict, cast

from sophserve.engine.request import Item
from sophserve.errors import RequestError
from sophserve.image_prompt import ImagePrompt, image_prompt, lacks_opening
from sophserve.media.loader import ImageLoader
from sophserve.media.source import ImageSource, image_source
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

Message = dict[str, Any]

_FORMS = "a text, token ids, or a dictionary with 'prompt' or 'prompt_token_ids'"
_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "multi_modal_data")
_IMAGES = "multi_modal_data"
# Modes of Pillow that a PNG file keeps as they are.
_PNG_MODES = frozenset({"1", "I;16", "L", "LA", "P", "RGB", "RGBA"})


class ImageData(TypedDict):
    """Images of a prompt, each of which its placeholder stands for there."""

    image: Image | list[Image]


class TextPrompt(TypedDict):
    """A text. cache_salt: KV blocks are only shared between prompts that have the same one. multi_modal_data: its
    images, for which the text has as many placeholders."""

    prompt: str
    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[ImageData]


class TokensPrompt(TypedDict):
    """Token ids. prompt: their text, for the output to show. The others: as in TextPrompt."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[ImageData]


Prompt = str | list[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True)
class EnginePrompt:
    """What the engine is given. text: None where only token ids are known. begins_text: see SamplingParams. items: its
    images."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""
    begins_text: bool = False
    items: tuple[Item, ...] = ()


def listed(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or several, as several. Raises RequestError."""
    if isinstance(prompts, str | Mapping):
        return [prompts]  # type: ignore[list-item]
    try:
        many: list[Any] = list(prompts)
    except TypeError:
        raise _not_a_prompt(prompts) from None
    return [many] if many and isinstance(many[0], SupportsIndex) else many


async def engine_prompt(prompt: Prompt, tokenizer: Tokenizer, images: ImageLoader | None) -> EnginePrompt:
    """A prompt in any of the forms. images: None for a model that sees none. Raises RequestError, which names the key
    of a dictionary that is wrong."""
    if isinstance(prompt, str):
        return EnginePrompt(prompt, tokenizer.encode(prompt))
    if not isinstance(prompt, Mapping):
        return EnginePrompt(None, _token_ids(prompt))
    fields = cast("Mapping[str, Any]", prompt)
    for key, value in fields.items():
        if key not in _KEYS and value is not None:
            raise RequestError(f"{key} of a prompt is not supported; leave it out", key)
    text, ids, salt, data = (fields.get(key) for key in _KEYS)
    if text is None and ids is None:
        raise RequestError("a prompt that is a dictionary needs the key 'prompt' or 'prompt_token_ids'", "prompt")
    for key, value in (("prompt", text), ("cache_salt", salt)):
        if not isinstance(value, str | None):
            raise RequestError(f"{key} of a prompt must be a text, got {type(value).__name__}", key)
    given = (text or "") if ids is None else _token_ids(ids)
    if sources := _sources(data):
        made = await _with_images(given, sources, tokenizer, images, add_special_tokens=True)
        return EnginePrompt(text, made.ids, salt or "", items=made.items)
    return EnginePrompt(text, tokenizer.encode(given) if isinstance(given, str) else given, salt or "")


async def chat_prompt(
    messages: list[Message], template: ChatTemplate, tokenizer: Tokenizer, images: ImageLoader | None, **options: Any
) -> EnginePrompt:
    """A conversation in the chat template, to which the options go. Raises RequestError."""
    sources: list[ImageSource] = []
    numbered = [_numbered(message, f"messages[{index}]", sources) for index, message in enumerate(messages)]
    rendered = template.rendered(numbered, **options)
    shown = [sources[number] for number in rendered.images]
    special = lacks_opening(rendered.prompt, tokenizer, images.processor if images else None)
    prompt = await _with_images(rendered.prompt, shown, tokenizer, images, special)
    begins_text = not options.get("continue_final_message")
    return EnginePrompt(rendered.prompt, prompt.ids, begins_text=begins_text, items=prompt.items)


async def _with_images(
    text: str | list[int],
    sources: list[ImageSource],
    tokenizer: Tokenizer,
    images: ImageLoader | None,
    add_special_tokens: bool,
) -> ImagePrompt:
    if images is None:
        if sources:
            raise RequestError(f"{sources[0].path}: this model sees no images; give text only", sources[0].path)
        return ImagePrompt(tokenizer.encode(text, add_special_tokens) if isinstance(text, str) else text)
    pictures = await images.load(sources) if sources else []
    return image_prompt(text, pictures, tokenizer, images.processor, add_special_tokens, "prompt")


def _sources(data: Any) -> list[ImageSource]:
    """The images of multi_modal_data."""
    if not data:
        return []
    if not isinstance(data, Mapping):
        raise RequestError(f"{_IMAGES} must be a dictionary with images, got {type(data).__name__}", _IMAGES)
    for key, value in data.items():
        if key != "image" and value:
            raise RequestError(f"{_IMAGES}[{key!r}] is not supported, only images; give frames of a video", _IMAGES)
    given = data.get("image")
    each = [given] if given is not None and not isinstance(given, list | tuple) else given or []
    return [_pillow_source(image, f"{_IMAGES}['image'][{number}]") for number, image in enumerate(each)]


def _numbered(message: Message, path: str, sources: list[ImageSource]) -> Message:
    """A message that has numbers in place of its images, which are added to the sources."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    parts: list[Any] = []
    for index, part in enumerate(content):
        if source := _source(part, f"{path}.content[{index}]"):
            part = {"type": "image", "image": len(sources)}
            sources.append(source)
        parts.append(part)
    return {**message, "content": parts}


def _source(part: Any, path: str) -> ImageSource | None:
    """The image of a part of a content, if it is one."""
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} as given}:
            return image_source(url, f"{path}.image_url.url", given.get("detail"))
        case {"type": "image_url" | "input_image", "image_url": str(url)}:
            return image_source(url, f"{path}.image_url", part.get("detail"))
        case {"type": "image_pil", "image_pil": image}:
            return _pillow_source(image, f"{path}.image_pil")
        case {"type": "image_url" | "input_image" | "image_pil" | "image"}:
            raise RequestError(
                f"{path}: an image is {{'type': 'image_url', 'image_url': {{'url': ...}}}} or "
                "{'type': 'image_pil', 'image_pil': a Pillow image}",
                path,
            )
    return None


def _pillow_source(image: Any, path: str) -> ImageSource:
    """An image of Pillow's as a file that keeps its pixels, upright."""
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise RequestError(f"{path}: must be a Pillow image, got {type(image).__name__}", path)
    upright = ImageOps.exif_transpose(image)
    kept = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
    file = io.BytesIO()
    kept.save(file, "PNG", compress_level=0)
    return ImageSource(path, data=file.getvalue())


def _token_ids(given: Any) -> list[int]:
    try:
        return list(map(operator.index, given))
    except TypeError:
        raise _not_a_prompt(given) from None


def _not_a_prompt(given: object) -> RequestError:
    return RequestError(f"a prompt must be {_FORMS}, got {type(given).__name__}", "prompt")
