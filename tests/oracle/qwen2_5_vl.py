"""Qwen2.5-VL as transformers has it, for tests: checkpoints, images, prompts, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from model_plugins.processors.qwen2_5_vl import Qwen2_5_VLProcessor
from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.link.images import ImageShape

IMAGE = 5
"""The token that stands for a piece of an image in the checkpoints of tests."""
COUNT = 12
"""Of tokens that answers have."""


class Seen(NamedTuple):
    """What a worker is given of an image."""

    pixels: Tensor
    shape: ImageShape


def picture(width: int, height: int) -> Image.Image:
    """Noise, the same for the same size."""
    generator = torch.Generator().manual_seed(width * 10007 + height)
    values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(values.numpy())


def processed(processor: Qwen2_5_VLProcessor, image: Image.Image, detail: Any = "auto") -> Seen:
    """What the server makes of an image."""
    shape = processor.shape(*image.size, detail)
    pixels = torch.frombuffer(bytearray(processor.pixels(image, detail)), dtype=torch.uint8)
    return Seen(pixels.view(shape.pixels), shape)


def transformers_model(directory, **options):
    """theirs, which answers greedily and without images."""
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, attn_implementation="eager", **options)
    model.generation_config = GenerationConfig(
        max_new_tokens=COUNT, do_sample=False, pad_token_id=0, suppress_tokens=[IMAGE]
    )
    return model.eval()


class Prompt(NamedTuple):
    """ids: its tokens. images: where each begins, and what it is. inputs: what transformers takes."""

    ids: list[int]
    images: list[tuple[int, Seen]]
    inputs: dict[str, Tensor]

    def going_on(self, ids: list[int]) -> dict[str, Tensor]:
        """What transformers takes of a longer text with the same images."""
        tokens = torch.tensor([ids])
        return self.inputs | {"input_ids": tokens, "mm_token_type_ids": (tokens == IMAGE).int()}


class Seer:
    """A checkpoint, ours and its processors."""

    def __init__(self, directory, open_model, *options, **more):
        from transformers import Qwen2VLImageProcessorPil

        self.their_processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
        self.processor = Qwen2_5_VLProcessor(read_config(directory), read_preprocessor_config(directory))
        self.ours = open_model(directory, *options, max_positions=4096, **more)

    def prompt(self, *parts: int | tuple[int, int]) -> Prompt:
        """Of texts, given as counts of tokens, and images, given as their sizes."""
        ids: list[int] = []
        images, pictures, generator = [], [], torch.Generator().manual_seed(5)
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(9, 512, (part,), generator=generator).tolist()
            else:
                pictures.append(picture(*part))
                images.append((len(ids), processed(self.processor, pictures[-1])))
                ids += [IMAGE] * images[-1][1].shape.tokens
        inputs = dict(self.their_processor(pictures, return_tensors="pt")) if pictures else {}
        return Prompt(ids, images, Prompt(ids, images, inputs).going_on(ids))

    def give(self, images: Sequence[tuple[int, Seen]]) -> int:
        """The number of a new sequence with these images."""
        number = max([*self.ours._lengths, *self.ours._given], default=-1) + 1
        for start, seen in images:
            self.ours.give(number, start, self.ours.encode(seen.pixels, seen.shape.grid), seen.shape.grid)
        return number

    def logprobs(self, prompt: Prompt, cut: Sequence[int] = (), ids: list[int] | None = None) -> Tensor:
        """Of every position, `[tokens, vocab]`. cut: the tokens of each step; by default all in one. ids: the whole
        text, if it goes on behind the prompt."""
        ids = ids or prompt.ids
        number, start, rows = self.give(prompt.images), 0, []
        for count in filter(None, cut or [len(ids)]):
            rows.append(self.ours.step({number: ids[start : start + count]})[number])
            start += count
        self.ours.forget(number)
        return torch.cat(rows).log_softmax(-1)


@torch.inference_mode()
def their_logprobs(theirs, prompt: Prompt, ids: list[int] | None = None) -> Tensor:
    """Those of transformers."""
    return theirs(**prompt.going_on(ids or prompt.ids)).logits[0].float().log_softmax(-1)
