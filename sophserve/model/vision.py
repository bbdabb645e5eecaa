"""What architectures that see have in common: images become rows of embeddings, a piece at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sophserve.model.decoder import CausalLM, DecoderConfig

C = TypeVar("C", bound=DecoderConfig)

Encoding = Generator[None, None, Tensor]
"""Work on an image that can be left and gone on with between steps. What it keeps meanwhile it has copied."""


class VisionLanguageModel(CausalLM[C]):
    """A decoder that is given the embeddings of images in place of those of their placeholder tokens.

    encoder_pieces: how many times `encode` yields for an image, whatever its size: the work is shared out evenly.
    """

    encoder_pieces: int

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


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float], rescale: float = 1 / 255) -> Tensor:
    """uint8 `[..., channels]` to float32, `(x * rescale - mean) / std` with the roundings of transformers' processors
    on NumPy's float32."""
    values = torch.arange(256, dtype=torch.float64) * rescale
    table = (values.float()[:, None] - torch.tensor(mean, dtype=torch.float32)) / torch.tensor(std, dtype=torch.float32)
    return torch.stack([table[:, channel][pixels[..., channel].long()] for channel in range(pixels.shape[-1])], -1)
