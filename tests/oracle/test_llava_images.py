"""The pixels of LLaVA-NeXT's images and their number of tokens, against transformers' processors."""

from __future__ import annotations

import pytest
import torch

from model_plugins.processors.llava import LlavaLlamaProcessor, LlavaNextProcessor
from sophserve.checkpoint import read_preprocessor_config
from sophserve.errors import CheckpointError
from sophserve.model.vision import Normalization
from tests.oracle.llava import PATCH, PINPOINTS, TILE, picture, tensor_of, transformers_processor

# Width and height: squares, primes, portraits, one pixel, panoramas, each pinpoint, one off of it.
SIZES = [
    *[(28, 28), (1, 1), (1000, 1), (1, 1000), (2, 2000), (97, 89), (89, 97), (53, 211), (211, 53), (100, 100)],
    *[(336, 672), (672, 336), (672, 672), (336, 1008), (1008, 336), (335, 671), (673, 337), (1009, 335), (336, 336)],
    *[(640, 480), (480, 640), (1920, 1080), (1080, 1920), (613, 617), (3001, 17), (500, 499), (101, 300), (2048, 2048)],
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_those_of_transformers(size):
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Theirs

    config = {"vision_config": {"image_size": 336, "patch_size": 14}, "image_token_index": 32000}
    processor, image = LlavaNextProcessor(config, {}), picture(*size)
    pixels, shape = tensor_of(processor, image)
    theirs = transformers_processor(336, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
    expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Normalization()(pixels).permute(0, 3, 1, 2), expected)
    counting = Theirs.__new__(Theirs)
    counting.image_processor, counting.patch_size, counting.num_additional_image_tokens = theirs, 14, 0
    assert shape.tokens == counting._get_number_of_features(size[1], size[0], 336, 336)


@pytest.mark.parametrize("size", [(97, 89), (640, 480), (1, 1000)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"resample": 2},
        {"resample": 0, "do_rescale": False},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1], "rescale_factor": 0.01},
        {"do_normalize": False, "do_resize": False, "do_center_crop": False, "do_pad": False},
    ],
)
def test_settings_are_obeyed(settings, size, tmp_path):
    theirs, image = transformers_processor(**settings), picture(*size)
    theirs.save_pretrained(tmp_path)
    config = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    preprocessor = read_preprocessor_config(tmp_path)
    pixels, _ = tensor_of(LlavaNextProcessor(config, preprocessor), image)
    expected = theirs([image], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Normalization.read(preprocessor)(pixels).permute(0, 3, 1, 2), expected.float())


def test_little_detail_is_the_whole_image_alone():
    config = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    processor, image = LlavaNextProcessor(config, {}), picture(211, 97)
    pixels, shape = tensor_of(processor, image, "low")
    fine, fine_shape = tensor_of(processor, image, "high")
    assert (shape.tokens, shape.pixels) == (17, (1, TILE, TILE, 3))
    assert torch.equal(pixels, fine[:1]) and fine_shape == processor.shape(211, 97, "auto")


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ({"image_grid_pinpoints": [[56, 100]]}, {}, r"image_grid_pinpoints have \[56, 100\], which tiles of 56 pixels"),
        ({"image_grid_pinpoints": "(1x1),(6x6)"}, {}, "image_grid_pinpoints must be a list of pairs"),
        ({"image_grid_pinpoints": [[56, 0]]}, {}, "a side in config.json's image_grid_pinpoints is 0"),
        ({"image_token_index": "x"}, {}, "image_token_index is 'x'"),
        ({"vision_config": None}, {}, "vision_config must be an object"),
        ({}, {"image_grid_pinpoints": [[56, 56]]}, "image_grid_pinpoints are not those of config.json"),
        ({}, {"size": {"shortest_edge": 224}}, "size is {'shortest_edge': 224}, but the tower of this model sees 56"),
        ({}, {"crop_size": 224}, "crop_size is 224"),
        ({}, {"resample": 9}, "resample is 9; it must be the number of a filter, 0 to 5"),
        ({}, {"do_flip_channel_order": True}, "do_flip_channel_order is True, which is not supported"),
        ({}, {"max_pixels": 50176}, "max_pixels is 50176, which is not supported"),
        ({}, {"image_processor_type": "SiglipImageProcessor"}, "image_processor_type is 'SiglipImageProcessor'"),
    ],
)
def test_what_a_processor_does_not_obey_is_refused_by_name(config, preprocessor, message):
    known = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    with pytest.raises(CheckpointError, match=message):
        LlavaNextProcessor(known | config, preprocessor)


def test_pinpoints_of_the_original_are_width_and_height():
    """Of a square in tiles 1 x 2 and 2 x 1, which are as good, the first one is taken."""
    config = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_grid_pinpoints": [[336, 672], [672, 336]]}
    shape = LlavaLlamaProcessor(config, {}).shape(100, 100, "auto")
    assert shape.grid[:2] == (2, 1) and shape.pixels == (3, 336, 336, 3)
