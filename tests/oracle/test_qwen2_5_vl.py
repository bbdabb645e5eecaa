"""Qwen2.5-VL against transformers: pixels, numbers of tokens, positions, logprobs and greedy tokens."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from model_plugins.processors.qwen2_5_vl import Qwen2_5_VLProcessor
from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.link.images import ImageShape
from sophserve.model.vision import Normalization

IMAGE = 5
CONFIG = {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
# Width and height: whole squares, odd, prime, portraits, panoramas within what is possible, halves, huge.
SIZES = [
    *[(28, 28), (56, 56), (1, 1), (1, 200), (200, 1), (27, 29), (13, 17), (97, 89), (89, 97), (53, 211), (211, 53)],
    *[(42, 42), (70, 70), (98, 42), (14, 2800), (2800, 14), (1000, 5), (5, 999), (640, 480), (480, 640), (613, 617)],
    *[(1001, 1003), (1002, 1001), (1024, 1024), (1920, 1080), (1080, 1920), (3001, 17), (2500, 2500), (4001, 300)],
]


class Seen(NamedTuple):
    """What a worker is given of an image."""

    pixels: Tensor
    shape: ImageShape


def picture(width, height):
    generator = torch.Generator().manual_seed(width * 10007 + height)
    values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(values.numpy())


def processed(processor, image, detail="auto"):
    shape = processor.shape(*image.size, detail)
    pixels = torch.frombuffer(bytearray(processor.pixels(image, detail)), dtype=torch.uint8)
    return Seen(pixels.view(shape.pixels), shape)


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


def transformers_model(directory):
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, attn_implementation="eager")
    model.generation_config = GenerationConfig(
        max_new_tokens=COUNT, do_sample=False, pad_token_id=0, suppress_tokens=[IMAGE]
    )
    return model.eval()


class Seer:
    """A checkpoint, ours and theirs."""

    def __init__(self, directory, open_model, **options):
        from transformers import Qwen2VLImageProcessorPil

        self.theirs = transformers_model(directory)
        self.their_processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
        self.processor = Qwen2_5_VLProcessor(read_config(directory), read_preprocessor_config(directory))
        self.ours = open_model(directory, max_positions=4096, **options)

    def prompt(self, parts):
        """Token ids of texts, given as counts, and images, and what transformers takes."""
        ids, images, generator = [], [], torch.Generator().manual_seed(5)
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(9, 512, (part,), generator=generator).tolist()
            else:
                images.append((len(ids), processed(self.processor, part)))
                ids += [IMAGE] * images[-1][1].shape.tokens
        tokens = torch.tensor([ids])
        inputs = {"input_ids": tokens, "mm_token_type_ids": (tokens == IMAGE).int()}
        if images:
            inputs |= self.their_processor([part for part in parts if not isinstance(part, int)], return_tensors="pt")
        return ids, images, inputs

    def give(self, images):
        """The number of a new sequence with these images."""
        number = max(self.ours._lengths, default=-1) + 1
        for start, seen in images:
            self.ours.give(number, start, self.ours.encode(seen.pixels, seen.shape.grid), seen.shape.grid)
        return number


PROMPTS = {
    "before": [(97, 89), 12],
    "between": [3, (28, 28), 5],
    "behind": [7, (13, 17)],
    "portrait": [2, (53, 411), 4],
    "panorama": [2, (300, 21), 4],
    "several": [4, (97, 89), 3, (56, 140), 2, (112, 112), 6, (200, 1), 5],
    "windows": [1, (113, 173), 9],
    "large": [5, (320, 240), 5],
    "text": [60],
}
COUNT = 12
# As the 3B and the 7B model.
KINDS = {"tied": {"tie_word_embeddings": True, "num_key_value_heads": 1}, "untied": {"num_hidden_layers": 2}}


@pytest.fixture(scope="module", params=KINDS)
def seer(request, make_checkpoint, open_model):
    directory = make_checkpoint("qwen2_5_vl", max_position_embeddings=4096, **KINDS[request.param])
    return Seer(directory, open_model)


@torch.inference_mode()
@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_equal_those_of_transformers(kind, seer):
    parts = [part if isinstance(part, int) else picture(*part) for part in PROMPTS[kind]]
    ids, images, inputs = seer.prompt(parts)
    generated = seer.theirs.generate(**inputs)[0].tolist()
    whole = inputs | {
        "input_ids": torch.tensor([generated]),
        "mm_token_type_ids": (torch.tensor([generated]) == IMAGE).int(),
    }
    expected = seer.theirs(**whole).logits[0].log_softmax(-1)
    positions, _ = seer.theirs.model.get_rope_index(
        whole["input_ids"], whole["mm_token_type_ids"], inputs.get("image_grid_thw")
    )
    cuts = {
        "whole": [len(generated)],
        "chunks": [13] * (len(generated) // 13) + [len(generated) % 13],
        "decoded": [len(ids)] + [1] * (len(generated) - len(ids)),
    }
    for cut in cuts.values():
        number, start, rows = seer.give(images), 0, []
        assert torch.equal(seer.ours.positions(number, len(generated)).long(), positions[:, 0])
        for count in filter(None, cut):
            rows.append(seer.ours.step({number: generated[start : start + count]})[number])
            start += count
        assert (torch.cat(rows).log_softmax(-1) - expected).abs().max() < 2e-4
    # transformers' generate() goes on from each axis by itself behind an image at the end; its forward() does not.
    if kind != "behind":
        chosen = expected[len(ids) - 1 : -1].index_fill(1, torch.tensor([IMAGE]), -torch.inf)
        assert chosen.argmax(-1).tolist() == generated[len(ids) :]
    assert expected.exp().max(-1).values.mean() > 0.03
