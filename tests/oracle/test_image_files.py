"""Files of every kind as a model sees them: pixel for pixel what transformers makes of the picture in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from model_plugins.processors.llava import LlavaNextProcessor
from model_plugins.processors.qwen2_5_vl import Qwen2_5_VLProcessor
from sophserve.media.pictures import read_picture
from sophserve.model.vision import Normalization
from tests.oracle.llava import PATCH, PINPOINTS, TILE, tensor_of, transformers_processor
from tests.oracle.qwen2_5_vl import processed
from tests.oracle.test_qwen2_5_vl_images import CONFIG, in_patches

SIZE = (131, 74)


def noise(mode: str) -> Image.Image:
    channels = 2 if mode == "I;16" else len(mode)
    return Image.frombytes(mode, SIZE, random.Random(mode).randbytes(channels * SIZE[0] * SIZE[1]))


def as_transformers_reads(path: Path) -> Image.Image:
    from transformers.image_utils import load_image

    return load_image(str(path))


def on_white(path: Path) -> Image.Image:
    """What transformers would see with black, or whatever colour lies there, where nothing is to be seen."""
    image = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def upper_bits(path: Path) -> Image.Image:
    """transformers, which leaves it to Pillow, would see white wherever a grey is above 255 of 65535."""
    return Image.frombytes("L", SIZE, Image.open(path).tobytes()[1::2]).convert("RGB")


Read = Callable[[Path], Image.Image]
# What is written, how, and the picture in it.
FILES: dict[str, tuple[Image.Image, dict[str, object], Read]] = {
    "palette.png": (noise("RGB").quantize(64), {}, as_transformers_reads),
    "palette.gif": (noise("RGB").quantize(64), {}, as_transformers_reads),
    "grey.bmp": (noise("L"), {}, as_transformers_reads),
    "bits.png": (noise("L").convert("1"), {}, as_transformers_reads),
    "cmyk.jpg": (noise("CMYK"), {"quality": 95}, as_transformers_reads),
    "16 bits.png": (noise("I;16"), {}, upper_bits),
    "alpha.png": (noise("RGBA"), {}, on_white),
    "alpha.webp": (noise("RGBA"), {"lossless": True, "exact": True}, on_white),
    "grey alpha.png": (noise("LA"), {}, on_white),
    "palette alpha.png": (noise("RGB").quantize(64), {"transparency": bytes(range(0, 256, 4))}, on_white),
    **{
        f"turned {orientation}.{kind}": (noise("RGB"), {"exif": {0x0112: orientation}}, as_transformers_reads)
        for orientation, kind in enumerate(("jpg", "png", "webp", "jpg", "png", "webp", "jpg"), 2)
    },
}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Image.Image, Image.Image]:
    """The picture that is found in a file, and the one in it."""
    image, options, read = FILES[request.param]
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = {**options, "exif": exif}
    image.save(tmp_path / request.param, **options)
    return read_picture(tmp_path / request.param, 1 << 20, lambda pixels: None), read(tmp_path / request.param)


def test_qwen2_5_vl_sees_what_transformers_sees(file: tuple[Image.Image, Image.Image]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    found, picture = file
    seen = processed(Qwen2_5_VLProcessor(CONFIG, {}), found)
    expected = Qwen2VLImageProcessorPil()(picture, return_tensors="pt")
    assert [list(seen.shape.grid)] == expected["image_grid_thw"].tolist()
    assert torch.equal(in_patches(Normalization()(seen.pixels), seen.shape.grid), expected["pixel_values"])


def test_llava_next_sees_what_transformers_sees(file: tuple[Image.Image, Image.Image]) -> None:
    found, picture = file
    config = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    pixels, _ = tensor_of(LlavaNextProcessor(config, {}), found)
    expected = transformers_processor()(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Normalization()(pixels).permute(0, 3, 1, 2), expected)
