"""Files of every format and mode become the picture that a person sees, by numbers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import pytest
from PIL import Image, ImageCms, ImageOps

from sophserve.media.loader import ImageLoader
from tests.media.conftest import decoded, encoded

Colour = tuple[int, int, int]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, kind: int, rows: bytes, *chunks: bytes) -> bytes:
    """A file by the format's definition. rows: each with its filter before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"".join(parts)


def over_white(*pixel: int) -> Colour:
    *colour, alpha = pixel
    red, green, blue = ((2 * (c * alpha + 255 * (255 - alpha)) + 255) // 510 for c in colour)
    return red, green, blue


def pixels(image: Image.Image) -> list[Colour]:
    """Row by row."""
    data = image.convert("RGB").tobytes()
    return list(zip(data[::3], data[1::3], data[2::3], strict=True))


def ramp(mode: str, size: tuple[int, int] = (16, 8)) -> Image.Image:
    """An image all of whose bytes differ as far as they can."""
    count = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, bytes(index * 37 % 256 for index in range(count)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
async def test_without_transparency(mode: str, kind: str, loader: ImageLoader) -> None:
    image = ramp("L").convert(mode) if mode == "1" else ramp(mode)
    if mode == "P":
        image.putpalette(bytes(index * 91 % 256 for index in range(768)))
    if kind == "GIF" and mode == "RGB":
        image = image.quantize(128)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert pixels(await decoded(loader, data)) == pixels(image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_alpha_is_laid_on_white(kind: str, loader: ImageLoader) -> None:
    """Every value with every alpha."""
    image = Image.new("RGBA", (256, 256))
    image.putdata([(value, 255 - value, value // 2, alpha) for alpha in range(256) for value in range(256)])
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    want = [over_white(value, 255 - value, value // 2, alpha) for alpha in range(256) for value in range(256)]
    assert pixels(await decoded(loader, data)) == want


async def test_grey_with_alpha(loader: ImageLoader) -> None:
    image = ramp("LA")
    values = list(zip(image.tobytes()[::2], image.tobytes()[1::2], strict=True))
    want = [over_white(value, value, value, alpha) for value, alpha in values]
    assert pixels(await decoded(loader, encoded(image))) == want


@pytest.mark.parametrize(
    ("bits", "kind", "row", "transparent", "want"),
    [
        # Greys of 1, 2 and 4 bits, one of which is transparent: Pillow 13.0.0 compares it with those of 8 bits.
        (1, 0, bytes([0b01000000]), struct.pack(">H", 1), [(0, 0, 0), (255, 255, 255)]),
        (2, 0, bytes([0b01100000]), struct.pack(">H", 1), [(255, 255, 255), (170, 170, 170)]),
        (4, 0, bytes([0x3C]), struct.pack(">H", 3), [(255, 255, 255), (204, 204, 204)]),
        (8, 0, bytes([3, 4]), struct.pack(">H", 3), [(255, 255, 255), (4, 4, 4)]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), struct.pack(">3H", 1, 2, 3), [(255, 255, 255), (4, 5, 6)]),
        # Of 16 bits the upper 8 count; Pillow 13.0.0 cuts greys off at 255.
        (16, 0, struct.pack(">2H", 0x1234, 0xFF00), None, [(0x12,) * 3, (0xFF,) * 3]),
        (16, 0, struct.pack(">2H", 0x1234, 0x1235), struct.pack(">H", 0x1234), [(255,) * 3, (0x12,) * 3]),
        (16, 2, struct.pack(">6H", 0x1234, 0, 0xFFFF, 1, 2, 3), None, [(0x12, 0, 255), (0, 0, 0)]),
        (16, 2, struct.pack(">6H", 0x1234, 0, 9, 1, 2, 3), struct.pack(">3H", 0x1234, 0, 9), [(255,) * 3, (0,) * 3]),
        (16, 4, struct.pack(">4H", 0x1234, 0x8000, 0xFFFF, 0), None, [over_white(18, 18, 18, 128), (255,) * 3]),
        (16, 6, struct.pack(">8H", 0x1234, 0, 0, 0x8000, 1, 2, 3, 0), None, [over_white(18, 0, 0, 128), (255,) * 3]),
    ],
)  # fmt: skip
async def test_png_of_other_depths(
    bits: int, kind: int, row: bytes, transparent: bytes | None, want: Sequence[Colour], loader: ImageLoader
) -> None:
    chunks = [] if transparent is None else [chunk(b"tRNS", transparent)]
    assert pixels(await decoded(loader, png(2, 1, bits, kind, b"\0" + row, *chunks))) == list(want)


async def test_palettes_with_transparency(loader: ImageLoader) -> None:
    palette = chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])) + chunk(b"tRNS", bytes([100, 200]))
    found = pixels(await decoded(loader, png(2, 1, 2, 3, bytes([0, 0b01000000]), palette)))
    assert found == [over_white(6, 5, 4, 200), over_white(9, 8, 7, 100)]
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 6, 5, 4])
    image.putpixel((1, 0), 1)
    assert pixels(await decoded(loader, encoded(image, "GIF", transparency=1))) == [(9, 8, 7), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
async def test_jpeg(mode: str, options: dict[str, int], loader: ImageLoader) -> None:
    data = encoded(ramp(mode, (33, 17)), "JPEG", **options)
    assert pixels(await decoded(loader, data)) == pixels(Image.open(io.BytesIO(data)))
    assert pixels(await decoded(loader, encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG"))) == [(255, 0, 0)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO"])
async def test_the_first_picture_of_several(kind: str, loader: ImageLoader) -> None:
    images = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(images[0], kind, save_all=True, append_images=images[1:])
    [colour] = set(pixels(await decoded(loader, data)))
    assert colour == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
async def test_pictures_are_turned_as_exif_says(orientation: int, kind: str, loader: ImageLoader) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(ramp("RGB", (24, 8)), kind, exif=exif)
    image = Image.open(io.BytesIO(data))
    want = ImageOps.exif_transpose(image) if 1 <= orientation <= 8 else image
    found = await decoded(loader, data)
    assert found.size == want.size and found.size == ((8, 24) if 5 <= orientation <= 8 else (24, 8))
    assert pixels(found) == pixels(want)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(40)])
async def test_exif_that_cannot_be_read_turns_nothing(exif: bytes, loader: ImageLoader) -> None:
    data = encoded(ramp("RGB"), "JPEG", exif=exif)
    assert pixels(await decoded(loader, data)) == pixels(Image.open(io.BytesIO(data)))


async def test_colour_profiles_are_left_alone(loader: ImageLoader) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert pixels(await decoded(loader, encoded(ramp("RGB"), icc_profile=profile))) == pixels(ramp("RGB"))
