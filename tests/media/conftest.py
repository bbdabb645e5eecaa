"""A checkpoint that sees, by a plugin whose pixels are the pictures themselves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from sophserve import plugins
from sophserve.media.limits import MediaLimits
from sophserve.media.loader import ImageLoader, Picture
from sophserve.media.source import ImageSource

ROOT = Path(__file__).parents[2]
PLUGIN = """
import os, time
from sophserve.link.images import ImageShape
from sophserve.errors import RequestError
from sophserve.media.processor import ImageProcessor
from sophserve.plugins import hookimpl

class PlainSight(ImageProcessor):
    placeholder = "<image>"

    def __init__(self, config, preprocessor):
        self.placeholder_id = config["image_token_index"]
        self.settings = f"shade {preprocessor.get('shade', 0)}"
        self.mishap = preprocessor.get("mishap")

    def shape(self, width, height, detail):
        if width > 50 * height:
            raise RequestError(f"is {width} pixels wide and {height} high; at most 50 times as wide are possible")
        side = (8, 8) if detail == "low" else (height, width)
        return ImageShape(side[0] * side[1], (*side, 3), side)

    def pixels(self, image, detail):
        if self.mishap == "sleep":
            time.sleep(60)
        while self.mishap == "loop":
            pass
        if self.mishap == "memory":
            bytearray(1 << 32)
        if self.mishap == "signal":
            os.kill(os.getpid(), 11)
        return (image.resize((8, 8)) if detail == "low" else image).tobytes()

@hookimpl
def register_image_processors(register):
    register("PlainSightForConditionalGeneration", PlainSight)
"""


@pytest.fixture(scope="package", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin, installed for this process and those that it starts."""
    site = tmp_path_factory.mktemp("site")
    (site / "plain_sight.py").write_text(PLUGIN)
    info = site / "plain_sight-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-sight\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sophserve.text]\nplain_sight = plain_sight\n")

    def forget() -> None:
        plugins.plugins_of.cache_clear()
        plugins._collect.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(site))
        forget()
        yield
        sys.modules.pop("plain_sight", None)
    forget()


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, as far as images are concerned."""
    directory = tmp_path_factory.mktemp("plain-sight")
    config = {"architectures": ["PlainSightForConditionalGeneration"], "image_token_index": 7}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps({"shade": 3}))
    return directory


MakeLoader = Callable[..., ImageLoader]


@pytest.fixture
async def make_loader(directory: Path) -> AsyncIterator[MakeLoader]:
    """Loaders with limits of the test's."""
    made = []

    def make(**limits: Any) -> ImageLoader:
        made.append(ImageLoader(directory, "PlainSightForConditionalGeneration", MediaLimits(**limits)))
        return made[-1]

    yield make
    for loader in made:
        await loader.close()


@pytest.fixture
async def loader(make_loader: MakeLoader) -> ImageLoader:
    return make_loader()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file with an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def source(data: bytes, path: str = "messages[0].content[1]", **fields: Any) -> ImageSource:
    return ImageSource(path, data=data, **fields)


def seen(picture: Picture) -> Image.Image:
    """What the workers see."""
    height, width, _ = picture.shape.pixels
    content = os.pread(picture.pixels.descriptor, picture.pixels.size, 0)
    return Image.frombytes("RGB", (width, height), content)


async def decoded(loader: ImageLoader, data: bytes, **fields: Any) -> Image.Image:
    [picture] = await loader.load([source(data, **fields)])
    return seen(picture)


def decoders() -> list[psutil.Process]:
    """The processes that decode, and the one that forks them, oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "sophserve.media.decoder" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return sorted(found, key=lambda process: process.create_time())


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)
