"""The parts of a message's content: from any API's to those of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from sophserve.errors import RequestError

IMAGES = ("image_url", "input_image", "image")
"""Types of parts that hold an image: of chat completions, of responses, and of messages."""
# What to send for a part whose type has one of these words.
_INSTEAD = {"video": "single frames of it as images", "audio": "what is said in it as text", "": "its text"}


class ImageUrl(msgspec.Struct):
    """url: a data URL, one of http or https, or base64 alone."""

    url: str
    detail: str | None = None


class ImageFile(msgspec.Struct):
    """Anthropic's source of an image: type base64 with its data, or url with that."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class ContentPart(msgspec.Struct, omit_defaults=True):
    """One part of a message: a text, or an image in one of three forms."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None
    detail: str | None = None
    file_id: str | None = None
    source: str | ImageFile | None = None


class ImagePart(ContentPart, kw_only=True):
    """An image as it was given, and where in the request; whatever API it came by."""

    given: str
    path: str


class Entry(Protocol):
    """An entry of a message's content in any API."""

    type: str
    text: str | None


def content_part(entry: Entry, path: str, types: tuple[str, ...] = ("text",), called: str = "parts") -> ContentPart:
    """An entry as chat completions have it. types: those that hold text; called: what the API calls entries. Raises
    RequestError for what is neither text nor an image."""
    if isinstance(entry, ImagePart):
        return entry
    if entry.type == "refusal" and (said := getattr(entry, "refusal", None)) is not None:
        return ContentPart("text", said)
    if entry.type in IMAGES:
        return _image(entry, path)
    if entry.type not in types:
        kind = entry.type[:64]
        instead = next(instead for word, instead in _INSTEAD.items() if word in kind)
        problem = f"{called} of type {kind!r} are not supported, only text, and images for models that see"
        raise RequestError(f"{path}: {problem}; send {instead}", path)
    if entry.text is None:
        raise RequestError(f"{path}.text: is missing", f"{path}.text")
    return ContentPart("text", entry.text)


def content_parts(
    content: str | Sequence[Entry], path: str, types: tuple[str, ...] = ("text",)
) -> str | list[ContentPart]:
    """A content as chat completions have it, as content_part does."""
    if isinstance(content, str):
        return content
    return [content_part(entry, f"{path}[{index}]", types) for index, entry in enumerate(content)]


def _image(entry: Entry, path: str) -> ImagePart:
    detail = getattr(entry, "detail", None)
    match getattr(entry, "image_url", None), getattr(entry, "source", None):
        case ImageUrl(url, inner), _:
            return ImagePart(type="image", given=url, path=f"{path}.image_url.url", detail=inner or detail)
        case str(url), _:
            return ImagePart(type="image", given=url, path=f"{path}.image_url", detail=detail)
        case _, object(type="base64", data=str(data)):
            return ImagePart(type="image", given=data, path=f"{path}.source.data", detail=detail)
        case _, object(type="url", url=str(url)):
            return ImagePart(type="image", given=url, path=f"{path}.source.url", detail=detail)
    wanted = {"image": "source must be of type base64 with data, or of type url with url"}
    problem = wanted.get(entry.type, "image_url is missing")
    if getattr(entry, "file_id", None) is not None:
        problem = "file_id names a file of OpenAI's servers; send the image itself as image_url"
    raise RequestError(f"{path}: {problem}", path)


def image_parts(content: str | list[ContentPart] | None) -> list[ImagePart]:
    """Those of a content."""
    return [part for part in content if isinstance(part, ImagePart)] if isinstance(content, list) else []
