"""What architectures that see have in common: images become rows of embeddings, a piece at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sophserve.errors import CheckpointError
from sophserve.model.context import ModelContext
from sophserve.model.decoder import CausalLM, DecoderConfig
from sophserve.model.layers import Linear
from sophserve.model.module import ParameterSpec

C = TypeVar("C", bound=DecoderConfig)

Encoding = Generator[None, None, Tensor]
"""Work on an image that can be left and gone on with between steps. What it keeps meanwhile it has copied."""


@dataclass(frozen=True)
class Normalization:
    """How pixels become numbers, `(x * rescale - mean) / std` for each channel. By default as CLIP has them."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale: float = 1 / 255

    @classmethod
    def read(cls, preprocessor: Mapping[str, Any]) -> Normalization:
        """That of a preprocessor_config.json. Raises CheckpointError for what are no such numbers."""

        def numbers(key: str, default: tuple[float, ...]) -> tuple[float, ...]:
            given = preprocessor.get(key)
            if given is None:
                return default
            values = given if isinstance(given, list) else [given] * len(default)
            are_numbers = all(type(each) in (int, float) and math.isfinite(each) for each in values)
            if not are_numbers or len(values) != len(default) or (key != "image_mean" and min(values) <= 0):
                several = f"{len(default)} numbers, or one" if len(default) > 1 else "a number"
                above = "" if key == "image_mean" else ", above 0"
                raise CheckpointError(f"preprocessor_config.json's {key} is {given!r}; it must be {several}{above}")
            return tuple(map(float, values))

        mean, std = numbers("image_mean", cls.mean), numbers("image_std", cls.std)
        (rescale,) = numbers("rescale_factor", (cls.rescale,))
        if preprocessor.get("do_normalize") is False:
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        return cls(mean, std, 1.0 if preprocessor.get("do_rescale") is False else rescale)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 `[..., channels]` to float32, with the roundings of transformers' processors on NumPy's float32."""
        values = (torch.arange(256, dtype=torch.float64) * self.rescale).float()
        table = (values[:, None] - torch.tensor(self.mean)) / torch.tensor(self.std)
        return torch.stack([table[:, channel][pixels[..., channel].long()] for channel in range(len(self.mean))], -1)


class VisionLanguageModel(CausalLM[C]):
    """A decoder that is given the embeddings of images in place of those of their placeholder tokens.

    encoder_pieces: how many times `encode` yields for an image, whatever its size: the work is shared out evenly.
    normalization: of its pixels, as the checkpoint has it.
    """

    encoder_pieces: int
    normalization = Normalization()

    @abstractmethod
    def encode(self, pixels: Tensor, grid: Sequence[int]) -> Encoding:
        """The embeddings of an image, `[placeholders, hidden]` in the run's dtype, on every rank alike.

        pixels, grid: as the image processor of this architecture gives them (sophserve.media.processor), uint8.
        """

    @abstractmethod
    def encoder_flops(self, placeholders: int) -> int:
        """About how many operations of products it takes to encode an image of so many placeholders, on this rank."""

    def axis_positions(self, grid: Sequence[int], placeholders: int) -> tuple[Tensor, int] | None:
        """Of ropes with sections: where an image's tokens are on each axis, int32 `[axes, placeholders]` from where it
        begins, and where the text goes on. None where they are counted as the tokens of a text."""
        return None


class PatchEmbedding(Linear):
    """A convolution over patches that do not overlap, as a product. kernel: channels and sizes of a patch, in the order
    of its values; so is the weight on disk, `[hidden, *kernel]`."""

    def __init__(self, context: ModelContext, kernel: Sequence[int], hidden_size: int) -> None:
        super().__init__(context, math.prod(kernel), hidden_size)
        self._shape = (hidden_size, *kernel)

    def parameters(self) -> dict[str, ParameterSpec]:
        """`weight`, `[hidden, *kernel]`."""
        return {"weight": ParameterSpec(self._shape)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        super().load({"weight": tensors["weight"].flatten(1)})
