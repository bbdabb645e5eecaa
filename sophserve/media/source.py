"""Where the images of a request come from."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from sophserve.errors import RequestError
from sophserve.media.processor import Detail

# OpenAI's "original" is for models that would make an image smaller even at "high".
_DETAILS: dict[str, Detail] = {"auto": "auto", "low": "low", "high": "high", "original": "high"}
_URL = re.compile(r"([a-z][a-z0-9+.-]*):", re.ASCII | re.IGNORECASE)
# Characters that are decoded at once; and more than padding takes, with its characters escaped and line breaks between.
_SLICE = 1 << 20
_LONGEST_END = 16
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class ImageSource:
    """An image that a request names. path: where in the request, for messages. One of data, an encoded file, and url,
    http or https, is given."""

    path: str
    detail: Detail = "auto"
    data: bytes | None = None
    url: str | None = None


def image_source(given: str, path: str, detail: str | None = None) -> ImageSource:
    """What a data URL, an http(s) URL or bare base64 names. It takes time for a large image. Raises RequestError."""
    if detail is not None and detail not in _DETAILS:
        raise RequestError(f"{path}: detail must be auto, low or high, got {detail[:40]!r}", path)
    level = _DETAILS[detail or "auto"]
    # Nothing but a data URL is long before its colon, and base64 has none.
    scheme = _URL.match(given[:40].lstrip())
    match scheme and scheme[1].lower():
        case "http" | "https":
            return ImageSource(path, level, url=given.strip())
        case "data":
            head, comma, encoded = given.partition(",")
            if not comma or not head.rstrip().lower().endswith(";base64"):
                raise RequestError(f"{path}: a data URL must look like data:image/png;base64,iVBORw0...", path)
            return ImageSource(path, level, data=_decoded(encoded, path))
        case None:
            return ImageSource(path, level, data=_decoded(given, path))
        case other:
            raise RequestError(
                f"{path}: a URL of an image begins with data:, https:// or http://, not with {other}:", path
            )


def _decoded(encoded: str, path: str) -> bytes:
    """The bytes of base64, also of its form for URLs, with line breaks or without padding."""
    try:
        data = b"".join(_pieces(encoded.rstrip()))
    except ValueError:  # of a character, or of a length that no padding makes whole
        raise RequestError(f"{path}: the image is not valid base64", path) from None
    if not data:
        raise RequestError(f"{path}: the image is empty", path)
    return data


def _pieces(encoded: str) -> Iterator[bytes]:
    """What base64 says, a slice at a time, for the calls that decode let nothing else run. Raises ValueError."""
    pending, start = b"", 0
    while start < len(encoded):
        end = start + _SLICE
        while "%" in encoded[end - 2 : end]:  # an escape is not cut apart
            end += 1
        piece = encoded[start:end]
        start = end if end + _LONGEST_END < len(encoded) else len(encoded)
        piece += encoded[end:start]
        digits = unquote_to_bytes(piece) if "%" in piece else piece.encode("ascii")
        digits = pending + b"".join(digits.split()).translate(_STANDARD)
        if start == len(encoded):
            digits = digits.rstrip(b"=")
            digits += b"=" * (-len(digits) % 4)
        elif b"=" in digits:
            raise ValueError("padding before the end")
        whole = len(digits) - len(digits) % 4
        pending = digits[whole:]
        yield binascii.a2b_base64(digits[:whole], strict_mode=True)
