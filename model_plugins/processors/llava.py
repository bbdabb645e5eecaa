"""LLaVA-NeXT's images: the whole image in the size of the tower, and tiles of that size cut out of one that is larger.

Pixel for pixel as transformers' LlavaNextImageProcessorPil.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_plugins.processors.settings import WHERE, check_steps, resampling, whole
from sophserve.checkpoint import read_json
from sophserve.errors import CheckpointError
from sophserve.link.images import ImageShape
from sophserve.media.processor import Detail, ImageProcessor
from sophserve.plugins import Register, hookimpl

if TYPE_CHECKING:
    from PIL import Image

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Height and width of what tiles may cover, where config.json does not say."""
_TYPES = ("LlavaNextImageProcessor", "LlavaNextImageProcessorFast", "LlavaNextImageProcessorPil")
# Of preprocessor_config.json: what is done anyway, what the worker obeys, and what changes no pixel here, since images
# are RGB and tiles have the size that they are resized to and cropped to.
_SWITCHES = frozenset({"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"})
# What processors of other models resize by.
_OTHERS = frozenset({"min_pixels", "max_pixels", "max_image_size", "max_dynamic_patch", "size_divisor", "pad_size"})

# The towers that are known by their name.
_CLIP_LARGE = {
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
}
VICUNA = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{{- said(messages[0].content) + ' ' -}}
{%- else -%}
{{- "A chat between a curious user and an artificial intelligence assistant. " -}}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' + said(message.content) + ' ' }}
{%- elif message.role == 'assistant' -%}{{ 'ASSISTANT: ' + said(message.content) + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
"""The conversation form vicuna_v1 of LLaVA's repository, whose images come before the text of a turn."""


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class LlavaNextProcessor(ImageProcessor):
    """The processor of LlavaNextForConditionalGeneration.

    An ImageShape has the whole image and the tiles, `[1 + tiles, size, size, 3]`. Its grid are the rows and columns of
    tiles, and how many rows of patches of them are padding at the top, with as many at the bottom, and how many columns
    on the left, with as many on the right.
    """

    placeholder = "<image>"
    changeable = frozenset({"resample"})

    def __init__(self, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError(f"config.json's vision_config must be an object, got {vision!r}")
        token = config.get("image_token_index", config.get("image_token_id", 32000))
        self.placeholder_id = whole("config.json's image_token_index", token, 0)
        self._prepare(
            whole("config.json's image_size", vision.get("image_size", 224), 1),
            whole("config.json's patch_size", vision.get("patch_size", 32), 1),
            _pinpoints(config.get("image_grid_pinpoints")),
            preprocessor,
        )

    def _prepare(
        self,
        size: int,
        patch_size: int,
        pinpoints: Sequence[Size],
        preprocessor: Mapping[str, Any],
        types: Sequence[str] = _TYPES,
    ) -> None:
        """size: of a tile's side in pixels, patch_size: of a patch's. types: of processors in preprocessor."""
        self._size = size
        self._side = size // patch_size
        self._pinpoints = pinpoints
        self._filter = _filter(preprocessor, size, types)
        own = preprocessor.get("image_grid_pinpoints")
        if own is not None and _pinpoints(own) != pinpoints:
            raise CheckpointError(
                "preprocessor_config.json's image_grid_pinpoints are not those of config.json; make them the same"
            )
        for each in pinpoints:
            if each.height % size or each.width % size:
                raise CheckpointError(
                    f"config.json's image_grid_pinpoints have {list(each)}, which tiles of {size} pixels do not fill"
                )
        grids = " ".join(f"{each.height}x{each.width}" for each in pinpoints)
        self.settings = f"llava tiles of {size} by filter {self._filter} over {grids}"

    def shape(self, width: int, height: int, detail: Detail) -> ImageShape:
        side, size = self._side, self._size
        if detail == "low":
            return ImageShape(side**2 + 1, (1, size, size, 3), (0, 0, 0, 0))
        best = self._best(Size(height, width))
        rows, columns = best.height // size, best.width // size
        top, left = _padding(Size(height, width), Size(rows * side, columns * side))
        shown = rows * side - 2 * top, columns * side - 2 * left
        return ImageShape(
            side**2 + shown[0] * (shown[1] + 1), (1 + rows * columns, size, size, 3), (rows, columns, top, left)
        )

    def pixels(self, image: Image.Image, detail: Detail) -> bytes:
        size, resample = self._size, self._filter
        tiles = [image.resize((size, size), resample)]
        if detail != "low":
            best = self._best(Size(image.height, image.width))
            inner = _within(Size(image.height, image.width), best)
            padded = image.resize((inner.width, inner.height), resample)
            left, top = (best.width - inner.width) // 2, (best.height - inner.height) // 2
            padded = padded.crop((-left, -top, best.width - left, best.height - top))
            for y in range(0, best.height, size):
                tiles += [padded.crop((x, y, x + size, y + size)) for x in range(0, best.width, size)]
        return b"".join(tile.tobytes() for tile in tiles)

    def _best(self, image: Size) -> Size:
        """The pinpoint that keeps most of an image, of those the one that wastes least, of those the first."""

        def worth(pinpoint: Size) -> tuple[int, int]:
            scale = min(pinpoint.width / image.width, pinpoint.height / image.height)
            scaled = int(image.width * scale) * int(image.height * scale)
            kept = min(scaled, image.width * image.height)
            return kept, kept - pinpoint.width * pinpoint.height

        return max(self._pinpoints, key=worth)


class LlavaLlamaProcessor(LlavaNextProcessor):
    """The processor of LlavaLlamaForCausalLM, whose pinpoints are width and height. Its tokenizers know no placeholder:
    prompts are cut where it stands."""

    placeholder_id = 0
    chat_template = VICUNA

    def __init__(self, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
        tower = tower_config(config)
        self._prepare(
            whole("the tower's image_size", tower.get("image_size", 224), 1),
            whole("the tower's patch_size", tower.get("patch_size", 32), 1),
            [Size(height, width) for width, height in _pinpoints(config.get("image_grid_pinpoints"))],
            preprocessor,
            (*_TYPES, "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
        )


def tower_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision_config of what a LlavaLlama's config.json has as mm_vision_tower, a folder or a name. Raises
    CheckpointError for one that is not known."""
    tower = config.get("mm_vision_tower")
    path = Path(str(tower)).expanduser() / "config.json"
    if path.is_file():
        found = read_json(path)
        vision = found.get("vision_config", found)
        return vision if isinstance(vision, dict) else {}
    known = _CLIP_LARGE.get(str(tower).rpartition("/")[2])
    if known is None:
        raise CheckpointError(
            f"config.json's mm_vision_tower is {tower!r}, which is no folder with a config.json here; known by name: "
            f"{', '.join(_CLIP_LARGE)}"
        )
    return known


def _within(image: Size, target: Size) -> Size:
    """The size of an image that is made to fit in another one, in pixels."""
    by_width, by_height = target.width / image.width, target.height / image.height
    if by_width < by_height:
        return Size(min(ceil(image.height * by_width), target.height), target.width)
    return Size(target.height, min(ceil(image.width * by_height), target.width))


def _padding(image: Size, patches: Size) -> tuple[int, int]:
    """How many rows of patches are padding at the top, and columns on the left, of a grid that holds an image. Here
    transformers rounds in another way than it does for pixels."""
    if image.width / image.height > patches.width / patches.height:
        shown = int(round(image.height * (patches.width / image.width), 7))
        return (patches.height - shown) // 2, 0
    shown = int(round(image.width * (patches.height / image.height), 7))
    return 0, (patches.width - shown) // 2


def _filter(preprocessor: Mapping[str, Any], size: int, types: Sequence[str]) -> int:
    """The number of the filter that a preprocessor_config.json resizes with. Raises CheckpointError for what it says
    that is not obeyed."""
    check_steps(preprocessor, types, _SWITCHES)
    for key in ("size", "crop_size"):
        given = preprocessor.get(key)
        sides = list(given.values()) if isinstance(given, dict) else [given]
        if given is not None and (not sides or any(side not in (None, size) for side in sides)):
            raise CheckpointError(f"{WHERE} {key} is {given!r}, but the tower of this model sees {size} pixels")
    unknown = [key for key, value in preprocessor.items() if value and key in _OTHERS]
    if unknown:
        raise CheckpointError(f"{WHERE} {unknown[0]} is {preprocessor[unknown[0]]!r}, which is not supported")
    return resampling(preprocessor)


def _pinpoints(given: Any) -> list[Size]:
    """Those of config.json. Raises CheckpointError."""
    pairs = PINPOINTS if given is None else given
    if not isinstance(pairs, list) or not pairs or not all(isinstance(each, list) and len(each) == 2 for each in pairs):
        raise CheckpointError(f"config.json's image_grid_pinpoints must be a list of pairs of sizes, got {given!r}")
    name = "a side in config.json's image_grid_pinpoints"
    return [Size(*(whole(name, side, 1) for side in each)) for each in pairs]


@hookimpl
def register_image_processors(register: Register) -> None:
    register("LlavaNextForConditionalGeneration", LlavaNextProcessor)
    register("LlavaLlamaForCausalLM", LlavaLlamaProcessor)
