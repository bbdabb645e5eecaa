"""How pixels become numbers."""

from __future__ import annotations

import pytest
import torch

from sophserve.errors import CheckpointError
from sophserve.model.vision import Normalization


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1]},
        {"image_mean": 0.5, "image_std": 0.3, "rescale_factor": 0.00784313725490196},
        {"do_normalize": False, "image_mean": [1, 2, 3]},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_every_value_is_that_of_transformers(settings):
    from transformers import CLIPImageProcessorPil

    pixels = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 3)[None]
    theirs = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **settings)
    expected = theirs(pixels.numpy(), return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    assert torch.equal(Normalization.read(settings)(pixels).permute(2, 0, 1), expected.float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]; it must be 3 numbers, or one$"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std is \[0.5, 0, 0.5\]; it must be 3 numbers, or one, above 0$"),
        ({"image_std": ["0.5", 1, 1]}, "image_std is"),
        ({"image_mean": [True, 1, 1]}, "image_mean is"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan; it must be a number, above 0$"),
    ],
)
def test_what_are_no_numbers_is_refused(settings, message):
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json's {message}"):
        Normalization.read(settings)
