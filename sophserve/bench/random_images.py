"""Random images of a size, to measure with."""

from __future__ import annotations

import argparse
import random
import re
from io import BytesIO


def image_size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT, for argparse."""
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip().lower())
    if sides is None:
        raise argparse.ArgumentTypeError("expected WIDTHxHEIGHT in pixels, such as 672x336")
    return int(sides[1]), int(sides[2])


def random_image(chance: random.Random, size: tuple[int, int], kind: str) -> bytes:
    """A file of one, in a format that Pillow writes."""
    from PIL import Image

    # Soft colours, as much like a photo as what compresses: noise would take as many bytes as pixels.
    colors = Image.frombytes("RGB", (16, 16), chance.randbytes(3 * 16 * 16))
    file = BytesIO()
    colors.resize(size, Image.Resampling.BICUBIC).save(file, kind, compress_level=1)
    return file.getvalue()
