"""LLaVA-NeXT against transformers: pixels, numbers of tokens, logprobs and greedy tokens."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from model_plugins.processors.llava import LlavaNextProcessor
from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.model.vision import Normalization

TILE, PATCH, IMAGE_TOKEN = 56, 14, 500
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
# Width and height: squares, primes, portraits, one pixel, panoramas, each pinpoint, one off of it.
SIZES = [
    *[(28, 28), (1, 1), (1000, 1), (1, 1000), (2, 2000), (97, 89), (89, 97), (53, 211), (211, 53), (100, 100)],
    *[(336, 672), (672, 336), (672, 672), (336, 1008), (1008, 336), (335, 671), (673, 337), (1009, 335), (336, 336)],
    *[(640, 480), (480, 640), (1920, 1080), (1080, 1920), (613, 617), (3001, 17), (500, 499), (101, 300), (2048, 2048)],
]
TINY_SIZES = [(28, 28), (1, 1), (300, 1), (97, 89), (53, 211), (112, 56), (56, 168), (113, 111), (640, 480)]


def picture(width, height):
    values = torch.randint(
        0, 256, (width * height * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(width)
    )
    return Image.frombytes("RGB", (width, height), bytes(values.tolist()))


def transformers_processor(tile=TILE, pinpoints=PINPOINTS, **settings):
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        **settings,
    )


def tensor_of(processor, image, detail="auto"):
    """What the server makes of an image, as the worker sees it, and its grid."""
    shape = processor.shape(*image.size, detail)
    values = processor.pixels(image, detail)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape.pixels), shape


@pytest.fixture(scope="session")
def make_llava(tmp_path_factory):
    """`make_llava("mistral", text={...}, vision={...}, **config)`: a directory as transformers writes it."""
    made = {}

    def make(kind="llama", text=None, vision=None, **config):
        key = json.dumps([kind, text, vision, config], sort_keys=True)
        if key not in made:
            made[key] = save_llava(tmp_path_factory.mktemp("llava"), kind, text or {}, vision or {}, config)
        return made[key]

    return make


def save_llava(directory, kind, text, vision, config):
    import transformers

    texts = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    settings = {"image_grid_pinpoints": PINPOINTS, "image_token_index": IMAGE_TOKEN} | config
    torch.manual_seed(0)
    model = transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            text_config=texts[kind](**TEXT | text),
            vision_config=transformers.CLIPVisionConfig(**VISION | vision),
            **settings,
        )
    )
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and "newline" not in name:
            tensor += 0.2 * torch.randn_like(tensor)
        elif "vision_tower" in name or "projector" in name:
            tensor += 0.15 * torch.randn_like(tensor)
    model.save_pretrained(directory)
    transformers_processor(pinpoints=settings["image_grid_pinpoints"]).save_pretrained(directory)
    return directory


def transformers_llava(directory):
    from transformers import LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()


def prompt_of(counts):
    """Text before, between and after images of so many tokens, and where these begin."""
    ids, starts = [7, 8, 9], []
    for number, count in enumerate(counts):
        starts.append(len(ids))
        ids += [IMAGE_TOKEN] * count + [20 + number, 30]
    return ids, starts


class Seeing:
    """One checkpoint, ours and theirs."""

    def __init__(self, directory, open_model):
        self.processor = LlavaNextProcessor(read_config(directory), read_preprocessor_config(directory))
        self.ours = open_model(directory, max_positions=1024)

    def logprobs(self, images, chunk=10_000):
        tensors = [tensor_of(self.processor, image) for image in images]
        ids, starts = prompt_of([shape.tokens for _, shape in tensors])
        number = len(self.ours._lengths)
        for start, (pixels, shape) in zip(starts, tensors, strict=True):
            self.ours.give(number, start, self.ours.encode(pixels, shape.grid))
        return ids, self.ours.logprobs(ids, chunk)


@torch.inference_mode()
def their_logprobs(theirs, images, ids, pinpoints=PINPOINTS):
    made = transformers_processor(pinpoints=pinpoints)(images, return_tensors="pt")
    return theirs(torch.tensor([ids]), **made).logits[0].float().log_softmax(-1)


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


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_logprobs_equal_those_of_transformers(kind, make_llava, open_model):
    directory = make_llava(kind, text={"sliding_window": 40} if kind == "mistral" else {"attention_bias": True})
    seeing, theirs = Seeing(directory, open_model), transformers_llava(directory)
    for size in TINY_SIZES:
        images = [picture(*size)]
        ids, ours = seeing.logprobs(images)
        expected = their_logprobs(theirs, images, ids)
        assert (ours - expected).abs().max() < 2e-3, size
    assert expected.exp().max(-1).values.mean() > 0.03
