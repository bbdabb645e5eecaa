"""Encoded images to RGB pictures, with Pillow. Imported by the processes that decode alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

# Pillow would import these when it first needs them, in each of the processes anew. A JPEG of several pictures is MPO.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from sophserve.errors import RequestError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_ORIENTATION = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 1 << 22  # bytes that are hashed at a time


def read_picture(path: Path, most_pixels: int, grant: Callable[[int], None]) -> Image.Image:
    """The RGB picture in a file, upright, on white where it is transparent. grant: called with the number of its pixels
    before they are decoded. Raises RequestError, whose message goes on from `the image`."""
    try:
        with path.open("rb") as file:
            head = file.read(30)
            width, height = declared = _declared_size(file, head)
            if width * height > most_pixels:
                raise RequestError(
                    f"has {width} x {height} = {width * height} pixels; at most {most_pixels} are decoded "
                    "(--max-image-pixels)"
                )
            grant(width * height)
            with Image.open(file, formats=_FORMATS) as image:
                if image.size != declared or width < 1 or height < 1:
                    raise RequestError(f"is damaged: it has {image.width} x {image.height} pixels")
                image.load()
                _mend_transparent_value(image, bits=head[24])
                turned = _TURNED.get(_orientation(image))
                picture = _on_white(image)
            return picture if turned is None else picture.transpose(turned)
    except RequestError:
        raise
    except UnidentifiedImageError:
        raise RequestError("is no PNG, JPEG, WebP, GIF or BMP file, or its beginning is damaged") from None
    except MemoryError:
        raise RequestError("takes too much memory to decode") from None
    except Exception as error:  # Pillow raises what it comes by
        raise RequestError(f"is damaged: {str(error)[:200] or type(error).__name__}") from None


def digest(picture: Image.Image, *fields: bytes) -> bytes:
    """The SHA-256 of a picture's pixels and size and of other fields, each with its length before it."""
    found = sha256()
    for field in (*fields, b"%d %d" % picture.size):
        found.update(len(field).to_bytes(8, "little") + field)
    rows = max(1, _STRIP // (3 * picture.width))
    for top in range(0, picture.height, rows):
        found.update(picture.crop((0, top, picture.width, min(top + rows, picture.height))).tobytes())
    return found.digest()


def _declared_size(file: BinaryIO, head: bytes) -> tuple[int, int]:
    """Width and height, before anything as large as that is made, as Pillow does on opening a WebP file."""
    match head[:4] + head[8:16]:
        case b"RIFFWEBPVP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"RIFFWEBPVP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"RIFFWEBPVP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    # Closing the image does not close the file.
    return Image.open(file, formats=_FORMATS).size


def _orientation(image: Image.Image) -> int:
    """As EXIF has it; 1, upright, where that cannot be read."""
    with suppress(Exception):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        return _grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    transparent = image.convert("RGBA")
    picture = Image.new("RGB", image.size, "white")
    picture.paste(transparent, mask=transparent)
    return picture


def _grey(image: Image.Image) -> Image.Image:
    """Of 16 bits, of which the upper ones count, as Pillow has it for colours. It would cut grey ones off at 255."""
    values = [value >> 8 for value in range(1 << 16)]
    if (transparent := image.info.get("transparency")) is not None:
        values[transparent & 0xFFFF] = 255
    return image.convert("I").point(values, "L").convert("RGB")


def _mend_transparent_value(image: Image.Image, bits: int) -> None:
    """PNG names the transparent value in as many bits as a sample has; Pillow compares it with samples of 8."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None:
        return
    if image.mode == "L" and bits < 8:
        most = (1 << bits) - 1
        image.info["transparency"] = (value & most) * 255 // most
    elif image.mode == "RGB" and bits == 16:
        image.info["transparency"] = tuple(each >> 8 for each in value)
