"""Pictures that questions are asked about."""

from __future__ import annotations

import re
import warnings
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from sophserve.errors import SophserveError

MOST_BYTES = 24 * 2**20
"""Of all pictures of a question with those before it: servers take requests of 32 MiB, and base64 is a third longer."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/]+={0,2}")


class PictureError(SophserveError):
    """A file is no picture that can be asked about."""


class Picture(msgspec.Struct):
    """A picture of a message. name: of its file, to be shown. url: a data URL."""

    name: str
    url: str

    @property
    def size(self) -> int:
        """Bytes of the file, give or take two."""
        return (len(self.url) - self.url.find(",") - 1) * 3 // 4


def is_data_url(url: str) -> bool:
    """Whether a picture can have this URL."""
    return _DATA_URL.fullmatch(url) is not None


def read_picture(path: Path) -> tuple[Picture, str]:
    """The picture in a file, and what to tell of it. Raises PictureError."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        size = max(len(content), path.stat().st_size)
        raise PictureError(f"{path} has {megabytes(size)}, and {megabytes(MOST_BYTES)} fit into a request")
    kind, width, height = _look(path, content)
    picture = Picture(path.name, f"data:{kind};base64,{b64encode(content).decode()}")
    return picture, f"{path.name}, {width} x {height}, {megabytes(len(content))}"


def _look(path: Path, content: bytes) -> tuple[str, int, int]:
    """The media type of a picture, its width and height."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded here
        try:
            with Image.open(BytesIO(content), formats=_FORMATS) as image:
                # What cameras write is often a JPEG with further ones behind it.
                kind = "image/jpeg" if image.format == "MPO" else str(image.get_format_mimetype())
                return kind, *image.size
        except Image.DecompressionBombError as error:
            raise PictureError(f"{path} is too large: {error}") from None
        except Exception:
            raise PictureError(f"{path} is no PNG, JPEG, WebP, GIF or BMP picture") from None


def as_content(text: str, pictures: list[Picture]) -> str | list[dict[str, Any]]:
    """A message's content in the form of OpenAI's API."""
    if not pictures:
        return text
    found: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each.url}} for each in pictures]
    return found + ([{"type": "text", "text": text}] if text else [])


def megabytes(size: int) -> str:
    """A size as it is told."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} KB"
