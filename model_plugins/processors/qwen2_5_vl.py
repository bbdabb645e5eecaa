"""Qwen2.5-VL's images: of nearly their own size and shape, in squares of patches, within a range of pixels.

Pixel for pixel as transformers' Qwen2VLImageProcessorPil.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any

from model_plugins.processors.settings import WHERE, check_steps, resampling, whole
from sophserve.errors import CheckpointError, RequestError
from sophserve.link.images import ImageShape
from sophserve.media.processor import Detail, ImageProcessor
from sophserve.plugins import Register, hookimpl

if TYPE_CHECKING:
    from PIL import Image

# How many times one side of an image can be as long as the other.
MOST_RATIO = 200
# As many pixels an image has at most if little detail is asked for.
LOW_PIXELS = 512 * 512

_TYPES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil", "Qwen2_5_VLImageProcessor")
# What is done anyway, and what the worker obeys.
_STEPS = frozenset({"do_resize", "do_convert_rgb", "do_rescale", "do_normalize"})


class Qwen2_5_VLProcessor(ImageProcessor):
    """The processor of Qwen2_5_VLForConditionalGeneration.

    An ImageShape has the pixels `[height, width, 3]`. Its grid are times, of which there is one, and rows and columns
    of patches.
    """

    placeholder = "<|image_pad|>"
    changeable = frozenset({"min_pixels", "max_pixels", "resample"})

    def __init__(self, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError(f"config.json's vision_config must be an object, got {vision!r}")
        self.placeholder_id = whole("config.json's image_token_id", config.get("image_token_id", 151655), 0)
        self._patch = _shared_size("patch_size", "patch_size", 14, vision, preprocessor)
        self._merge = _shared_size("spatial_merge_size", "merge_size", 2, vision, preprocessor)
        _shared_size("temporal_patch_size", "temporal_patch_size", 2, vision, preprocessor)
        self._least, self._most = _pixel_range(preprocessor)
        check_steps(preprocessor, _TYPES, _STEPS)
        if preprocessor.get("do_resize") is False:
            raise CheckpointError(f"{WHERE} do_resize is false, which is not supported")
        self._filter = resampling(preprocessor)
        self.settings = (
            f"squares of {self._merge} patches of {self._patch}, {self._least} to {self._most} pixels, filter "
            f"{self._filter}"
        )

    def shape(self, width: int, height: int, detail: Detail) -> ImageShape:
        longer, shorter = max(width, height), min(width, height)
        if longer > MOST_RATIO * shorter:
            raise RequestError(
                f"has {width} x {height} pixels, one side {longer / shorter:.1f} times as long as the other; at most "
                f"{MOST_RATIO} times are possible"
            )
        height, width = self._size(height, width, detail)
        rows, columns = height // self._patch, width // self._patch
        return ImageShape(rows * columns // self._merge**2, (height, width, 3), (1, rows, columns))

    def pixels(self, image: Image.Image, detail: Detail) -> bytes:
        height, width = self._size(image.height, image.width, detail)
        return image.resize((width, height), self._filter).tobytes()

    def _size(self, height: int, width: int, detail: Detail) -> tuple[int, int]:
        """The height and width in whole squares that come near those of an image, with a number of pixels that is in
        the range."""
        square, least, most = self._patch * self._merge, self._least, self._most
        if detail == "low":
            least, most = min(least, LOW_PIXELS), min(most, LOW_PIXELS)
        # What is exactly between two goes to the even one.
        rows, columns = round(height / square), round(width / square)
        if rows * columns * square**2 > most:
            scale = sqrt(height * width / most)
            rows, columns = (max(1, floor(side / scale / square)) for side in (height, width))
        elif rows * columns * square**2 < least:
            scale = sqrt(least / (height * width))
            rows, columns = (ceil(side * scale / square) for side in (height, width))
        return rows * square, columns * square


def _pixel_range(preprocessor: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most pixels of an image: `size`, whose values min_pixels and max_pixels replace."""
    size = preprocessor.get("size")
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280} if size is None else size
    if not isinstance(size, dict):
        raise CheckpointError(f"{WHERE} size must be an object, got {size!r}")
    size = dict(size)
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if preprocessor.get(key) is not None:
            size.pop(key, None)
            size[edge] = preprocessor[key]
    if set(size) != {"shortest_edge", "longest_edge"}:
        raise CheckpointError(
            f"{WHERE} size has {', '.join(map(str, size)) or 'nothing'}; it must have shortest_edge and longest_edge, "
            "or give min_pixels and max_pixels beside it"
        )
    least, most = (
        whole(f"{WHERE} {edge} of size", size[edge], 1, 1 << 32) for edge in ("shortest_edge", "longest_edge")
    )
    return least, most


def _shared_size(key: str, own: str, usual: int, vision: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> int:
    """A size that the model has, and its processor under a key of its own if it says it at all."""
    size = whole(f"{key} of config.json's vision_config", vision.get(key, usual), 1)
    if preprocessor.get(own) not in (None, size):
        raise CheckpointError(f"{WHERE} {own} is {preprocessor[own]!r}, but the model was made for {size}")
    return size


@hookimpl
def register_image_processors(register: Register) -> None:
    register("Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLProcessor)
