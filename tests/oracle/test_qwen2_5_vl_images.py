"""Qwen2.5-VL's images against transformers' PIL processor."""

from __future__ import annotations

import pytest
import torch

from model_plugins.processors.qwen2_5_vl import LOW_PIXELS, Qwen2_5_VLProcessor
from sophserve.errors import CheckpointError, ConfigError, RequestError
from sophserve.media.processor import read_processor
from sophserve.model.vision import Normalization
from tests.oracle.qwen2_5_vl import picture, processed

CONFIG = {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
# Width and height: whole squares, odd, prime, portraits, panoramas within what is possible, halves, huge.
SIZES = [
    *[(28, 28), (56, 56), (1, 1), (1, 200), (200, 1), (27, 29), (13, 17), (97, 89), (89, 97), (53, 211), (211, 53)],
    *[(42, 42), (70, 70), (98, 42), (14, 2800), (2800, 14), (1000, 5), (5, 999), (640, 480), (480, 640), (613, 617)],
    *[(1001, 1003), (1002, 1001), (1024, 1024), (1920, 1080), (1080, 1920), (3001, 17), (2500, 2500), (4001, 300)],
]


def in_patches(values, grid):
    """Normalised `[height, width, 3]` as transformers orders it: patches of a square, then squares."""
    _, rows, columns = grid
    height, _, channels = values.shape
    size = height // rows
    cut = values.view(rows // 2, 2, size, columns // 2, 2, size, channels).permute(0, 3, 1, 4, 6, 2, 5)
    return cut[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(rows * columns, -1)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, SIZES),
        ({"min_pixels": 3136, "max_pixels": 12845056}, [(2500, 2500), (4001, 300), (97, 89)]),
        ({"size": {"shortest_edge": 50176, "longest_edge": 60000}}, SIZES[:20]),
        ({"size": {"min_pixels": 1, "max_pixels": 2}, "min_pixels": 784, "max_pixels": 50176}, SIZES[:20]),
        ({"size": {"shortest_edge": 1, "longest_edge": 2}, "max_pixels": 9999, "resample": 2}, SIZES[:9]),
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1], "rescale_factor": 0.005}, SIZES[:3]),
        ({"do_rescale": False, "do_normalize": False, "resample": 0}, SIZES[:3]),
    ],
)
def test_pixels_equal_those_of_transformers(settings, sizes):
    from transformers import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(**settings)
    processor, normalization = Qwen2_5_VLProcessor(CONFIG, settings), Normalization.read(settings)
    for size in sizes:
        image = picture(*size)
        expected = theirs(image, return_tensors="pt")
        seen = processed(processor, image)
        assert [list(seen.shape.grid)] == expected["image_grid_thw"].tolist(), size
        assert seen.shape.tokens == len(expected["pixel_values"]) // 4
        assert torch.equal(in_patches(normalization(seen.pixels), seen.shape.grid), expected["pixel_values"]), size


def test_little_detail_is_a_smaller_range_of_pixels():
    processor = Qwen2_5_VLProcessor(CONFIG, {"min_pixels": 1 << 19, "max_pixels": 1 << 20})
    expected = Qwen2_5_VLProcessor(CONFIG, {"min_pixels": LOW_PIXELS, "max_pixels": LOW_PIXELS})
    for size in SIZES:
        image = picture(*size)
        low, usual = processed(processor, image, "low"), processed(expected, image)
        assert low.shape == usual.shape and torch.equal(low.pixels, usual.pixels)
        assert processor.shape(*size, "high") == processor.shape(*size, "auto")
    assert (
        processor.shape(3000, 2000, "low").tokens * 28**2
        <= LOW_PIXELS
        < processor.shape(3000, 2000, "auto").tokens * 28**2
    )


def test_other_sizes_of_patches_are_the_models():
    config = {"vision_config": {"patch_size": 10, "spatial_merge_size": 3}, "image_token_id": 7}
    processor = Qwen2_5_VLProcessor(config, {})
    assert processor.shape(100, 200, "auto").pixels == (210, 90, 3)
    assert processor.shape(100, 200, "auto").grid == (1, 21, 9) and processor.placeholder_id == 7
    assert processor.settings != Qwen2_5_VLProcessor(config, {"min_pixels": 1}).settings


@pytest.mark.parametrize("size", [(2801, 14), (14, 2801), (201, 1), (1, 100000)])
def test_images_that_are_too_narrow_are_refused(size):
    from transformers import Qwen2VLImageProcessorPil

    with pytest.raises(ValueError, match="aspect ratio"):
        Qwen2VLImageProcessorPil()(picture(*size))
    with pytest.raises(RequestError, match=f"has {size[0]} x {size[1]} pixels, .* at most 200 times") as caught:
        Qwen2_5_VLProcessor(CONFIG, {}).shape(*size, "auto")
    assert f"{max(size) / min(size):.1f} times as long" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16, but the model was made for 14"),
        ({"merge_size": 1}, "merge_size is 1, but the model was made for 2"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1, but the model was made for 2"),
        (
            {"size": {"height": 448, "width": 448}},
            "size has height, width; it must have shortest_edge and",
        ),
        ({"size": {"shortest_edge": 448}}, "size has shortest_edge; it must have"),
        ({"size": {"max_pixels": 9}, "min_pixels": 9}, "size has max_pixels, shortest_edge; it must have"),
        ({"size": {}}, "size has nothing"),
        ({"size": 448}, "size must be an object, got 448"),
        ({"min_pixels": 0}, "shortest_edge of size is 0; it must be a whole number from 1"),
        ({"max_pixels": "many"}, "longest_edge of size is 'many'"),
        ({"resample": 9}, "resample is 9; it must be the number of a filter, 0 to 5"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": True}, "do_center_crop is True, which is not supported"),
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image_processor_type is 'CLIPImageProcessor'",
        ),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused_by_name(settings, message):
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json's {message}"):
        Qwen2_5_VLProcessor(CONFIG, settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "vision_config must be an object, got None"),
        (
            {"vision_config": {"patch_size": [14, 14]}},
            r"patch_size of config.json's vision_config is \[14, 14\]",
        ),
        ({"vision_config": {}, "image_token_id": "<image>"}, "image_token_id is '<image>'"),
    ],
)
def test_configs_that_cannot_be_obeyed_are_refused_by_name(config, message):
    with pytest.raises(CheckpointError, match=message):
        Qwen2_5_VLProcessor(config, {})


def test_options_change_what_pixels_depend_on_and_nothing_else(make_checkpoint):
    directory, name = make_checkpoint("qwen2_5_vl"), "Qwen2_5_VLForConditionalGeneration"
    changed = read_processor(directory, name, {"max_pixels": 7840})
    assert changed.shape(500, 500, "auto").pixels == (84, 84, 3)
    # Beside min_pixels and max_pixels of a file, size would change nothing; what is misspelt never does.
    for key in ("size", "max_pixel"):
        with pytest.raises(ConfigError, match=f"'{key}', which images .* they take: max_pixels, min_pixels, resample"):
            read_processor(directory, name, {key: 7840})
