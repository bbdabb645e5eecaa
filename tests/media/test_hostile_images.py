"""Files that are made to break what reads them. All is answered; nothing grows, and others go on."""

from __future__ import annotations

import asyncio
import random
import struct
import zlib

import psutil
import pytest
from PIL import Image

from sophserve.errors import RequestError, ServerBusy
from sophserve.media.loader import ImageLoader
from tests.media.conftest import MakeLoader, decoded, decoders, encoded, seen, source
from tests.media.test_pictures import chunk, png, ramp

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
NONE = "the image is no PNG, JPEG, WebP, GIF or BMP file"


def riff(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    """One without a picture in it."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def gif(width: int, height: int) -> bytes:
    """One of a single pixel on a large screen."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    bits = 8 if compression else 24
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 256 if compression else 0, 0)
    palette = bytes(1024 if compression else 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header) + len(palette)) + header + palette + b"\0\0\0\1"


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(60_000, 50_000, 8, 6, b""), (60_000, 50_000)),
        (png(2**31 - 1, 2**31 - 1, 1, 0, b""), (2**31 - 1, 2**31 - 1)),
        (jpeg(65_000, 65_000), (65_000, 65_000)),
        (gif(65_535, 65_535), (65_535, 65_535)),
        (bmp(100_000, 100_000), (100_000, 100_000)),
        (bmp(30_000, 30_000, compression=1), (30_000, 30_000)),
        (bmp(5, -(2**31)), (5, 2**31)),
        (riff(b"VP8X", bytes(4) + (2**24 - 1).to_bytes(3, "little") * 2), (2**24, 2**24)),
        (riff(b"VP8L", b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little")), (16_383, 16_383)),
        (riff(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)), (16_383, 16_383)),
    ],
    ids=["png", "png-most", "jpeg", "gif", "bmp", "bmp-rle", "bmp-upside-down", "webp-x", "webp-lossless", "webp"],
)
async def test_sizes_are_looked_at_first(data: bytes, size: tuple[int, int], loader: ImageLoader) -> None:
    pixels = f"{size[0]} x {size[1]} = {size[0] * size[1]} pixels"
    with pytest.raises(RequestError, match=f"the image has {pixels}; at most 67108864 are decoded"):
        await decoded(loader, data)


TEXT = b"Comment\0\0" + zlib.compress(bytes(1 << 26))
TEXTS = b"".join(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) for _ in range(100))


@pytest.mark.parametrize(
    "data",
    [
        png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", TEXT)),
        png(1, 1, 8, 0, b"\0\0", TEXTS),
        png(1, 1, 8, 0, b"\0\0", chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(1 << 26)))),
        png(1, 1, 8, 0, b"\0\0", chunk(b"iCCP", TEXT)),
        png(1, 1, 8, 0, bytes(1 << 26)),
        png(8000, 8000, 8, 6, b""),
        png(8000, 8000, 8, 6, bytes(1000)),
        png(0, 1, 8, 0, b"\0"),
        gif(0, 5),
        gif(3000, 3000),
        bmp(8000, 8000),
        bmp(8000, 8000, compression=1),
        bmp(0, 5),
        jpeg(8000, 8000),
        jpeg(1, 0),
        riff(b"VP8X", bytes(4) + (7999).to_bytes(3, "little") * 2),
        riff(b"VP8L", b"\x2f" + (7999 | 7999 << 14).to_bytes(4, "little")),
        encoded(ramp("RGB"), "WEBP")[:26] + b"\1\0\1\0" + encoded(ramp("RGB"), "WEBP")[30:],
    ],
    ids=lambda data: f"{data[:4].strip()!r}-{len(data)}",
)
async def test_bombs_stay_small(data: bytes, make_loader: MakeLoader) -> None:
    """Some of them are pictures, too. What decodes takes no more than what the picture is granted."""
    loader = make_loader(seconds=5)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            for process in decoders():
                try:
                    most = max(most, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    try:
        assert (await decoded(loader, data)).size in ((1, 1), (1, 5), (3000, 3000), (8000, 8000))
    except RequestError as error:
        assert "the image is damaged" in str(error) or NONE in str(error) or "takes" in str(error)
    watching.cancel()
    assert most < 1 << 30


@pytest.mark.parametrize("kind", FORMATS)
async def test_truncated_files(kind: str, loader: ImageLoader) -> None:
    data = encoded(Image.effect_noise((64, 64), 80).convert("P" if kind == "GIF" else "RGB"), kind)
    assert (await decoded(loader, data)).size == (64, 64)
    for size in (1, 4, 12, 20, 30, len(data) // 2, len(data) - 200):
        with pytest.raises(RequestError, match=f"the image is damaged|{NONE}"):
            await decoded(loader, data[:size])


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(ramp("RGB", (32, 32)), kind) for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX", "PDF", "DDS", "SGI")),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"<!doctype html><title>404</title>",
        b"BM",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"\0",
    ],
    ids=lambda data: repr(data[:6]),
)  # fmt: skip
async def test_other_files(data: bytes, loader: ImageLoader) -> None:
    with pytest.raises(RequestError, match=f"{NONE}|the image is damaged"):
        await decoded(loader, data)


async def test_a_hundred_at_once(loader: ImageLoader) -> None:
    images = [Image.effect_noise((64, 40 + number), 99).convert("RGB") for number in range(100)]
    loads = [asyncio.create_task(loader.load([source(encoded(image))])) for image in images]
    most = 0
    while not all(load.done() for load in loads):
        most = max(most, len(decoders()))
        await asyncio.sleep(0.001)
    found = [seen(load.result()[0]).tobytes() for load in loads]
    assert found == [image.tobytes() for image in images]
    assert 1 <= most <= 1 + loader._at_once


async def test_a_request_of_many_images_lets_others_in_between(loader: ImageLoader) -> None:
    def images(count: int, width: int) -> list[bytes]:
        return [encoded(Image.effect_noise((width, 500 + number), 99)) for number in range(count)]

    many = asyncio.create_task(loader.load([source(data) for data in images(16, 600)]))
    await asyncio.sleep(0)
    assert (await decoded(loader, *images(1, 30))).width == 30
    assert not many.done()
    await many


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with some of its bytes changed, cut, doubled or moved."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(changed) if chance.random() < 0.5 else min(64, len(changed)))
        size = chance.randrange(1, 9)
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice((0, 1, 127, 128, 255))
            case 2:
                changed[at : at + size] = chance.randbytes(size)
            case 3:
                del changed[max(1, at) : at + size]
            case 4:
                changed[at:at] = changed[at : at + 8 * size]
            case 5:
                del changed[max(1, at) :]
    return bytes(changed)


def files() -> list[bytes]:
    """Of every format, some of each."""
    noise = Image.effect_noise((40, 30), 90)
    colours = Image.merge("RGBA", [noise, noise.rotate(90), noise.rotate(180), noise.rotate(270)])
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    palette = colours.convert("RGB").quantize(64)
    several = [palette.rotate(90 * turn) for turn in range(1, 3)]
    return [
        encoded(colours),
        encoded(colours.convert("RGB"), exif=exif, icc_profile=bytes(200)),
        encoded(palette, transparency=3),
        encoded(noise.convert("I;16")),
        encoded(palette, save_all=True, append_images=several),
        encoded(colours.convert("RGB"), "JPEG", exif=exif),
        encoded(colours.convert("CMYK"), "JPEG", progressive=True),
        encoded(colours.convert("RGB"), "MPO", save_all=True, append_images=[colours.convert("RGB")]),
        encoded(colours, "WEBP", exif=exif),
        encoded(colours, "WEBP", lossless=True),
        encoded(colours, "WEBP", save_all=True, append_images=[colours.rotate(90)]),
        encoded(palette, "GIF", transparency=3),
        encoded(palette, "GIF", save_all=True, append_images=several),
        encoded(colours.convert("RGB"), "BMP"),
        encoded(palette, "BMP"),
        encoded(noise.convert("1"), "BMP"),
        bmp(40, 30, compression=1) + bytes([40, 7, 0, 0] * 30) + b"\0\1",
    ]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
async def test_mutated_images(count: int, loader: ImageLoader) -> None:
    chance, originals = random.Random(count), files()
    for data in originals[:-1]:
        await loader.load([source(data)])
    [process] = decoders()
    before, answers = process.memory_info().rss, {"picture": 0, "refused": 0}

    async def answered(data: bytes) -> None:
        try:
            [picture] = await loader.load([source(data)])
        except RequestError as error:
            assert str(error).startswith("messages[0].content[1]: the image ") and len(str(error)) < 600
            answers["refused"] += 1
        except ServerBusy:
            pytest.fail("no image may be too much for the machine")
        else:
            width, height = seen(picture).size
            assert 0 < width * height <= loader.limits.pixels
            answers["picture"] += 1

    for _ in range(count // 20):
        await asyncio.gather(*(answered(mutated(chance.choice(originals), chance)) for _ in range(20)))
    assert decoders() == [process]  # the same one, and nothing that it forked
    assert process.memory_info().rss < before + 2**23
    assert sum(answers.values()) == count and min(answers.values()) > count // 10
