"""Rotary position embedding tables, with the scalings that checkpoints ask for.

The angles are computed in float32 in the order of operations that transformers uses: at position 100,000 an angle has
an error of some thousandths in float32, and a model is trained and tested with these very errors. Their cosines and
sines are rounded from float64: in float32 the last bit of a large table may depend on how a maths library shares the
work among its threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from device.interface import Rope
from sophserve.errors import CheckpointError

Positive = Annotated[float, Meta(gt=0, le=1e9)]


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """config.json's `rope_parameters` (in older files `rope_theta` and `rope_scaling`), by the names of the file.

    original_max_position_embeddings: the context length in tokens that the model was trained with before scaling.
    mrope_section: how many of the angles go by each of a position's three axes (M-RoPE). 0 stands for what the file
    does not give.
    """

    rope_type: str = "default"
    rope_theta: Annotated[float, Meta(gt=1)] = 10000.0
    partial_rotary_factor: Positive = 1.0
    original_max_position_embeddings: Annotated[int, Meta(ge=1)] = 0
    factor: Positive = 0.0
    low_freq_factor: Positive = 0.0
    high_freq_factor: Positive = 0.0
    attention_factor: float | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    mrope_section: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rope_type not in _FREQUENCIES:
            raise CheckpointError(
                f"config.json's rope_type {self.rope_type!r} is not supported; supported: {', '.join(_FREQUENCIES)}"
            )
        for name in _NEEDED[self.rope_type]:
            if not getattr(self, name):
                raise CheckpointError(f"config.json has no {name}, which rope_type {self.rope_type!r} needs")
        if self.mrope_section and self.rope_type == "dynamic":
            raise CheckpointError("config.json has an mrope_section, which does not go with rope_type 'dynamic'")

    def context_length(self, max_position_embeddings: int) -> int:
        """Tokens that the scaling reaches. llama3 counts its factor in max_position_embeddings already."""
        if self.rope_type == "yarn":
            return int(self.original_max_position_embeddings * self.factor)
        if self.rope_type in ("linear", "dynamic"):
            return int(max_position_embeddings * self.factor)
        return max_position_embeddings


def make_rope(parameters: RopeParameters, head_dim: int, max_positions: int) -> Rope:
    """Tables for positions 0 to max_positions - 1, `[max_positions, rotary_dim / 2]`, on the host."""
    rotary_dim = int(head_dim * parameters.partial_rotary_factor)
    if rotary_dim < 4 or rotary_dim % 2 or rotary_dim > head_dim:
        raise CheckpointError(
            f"config.json asks to rotate {rotary_dim} channels of a head of {head_dim}; it takes at least two pairs"
        )
    sections = parameters.mrope_section
    if sections and (len(sections) != 3 or min(sections) < 0 or sum(sections) != rotary_dim // 2):
        raise CheckpointError(
            f"config.json's mrope_section is {list(sections)}; it must be three numbers whose sum is half of the "
            f"{rotary_dim} channels that are rotated"
        )
    frequencies = _FREQUENCIES[parameters.rope_type](parameters, rotary_dim, max_positions)
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
    scale = _attention_factor(parameters)
    exact = angles.double()
    return Rope(exact.cos().float() * scale, exact.sin().float() * scale, sections=sections)


def _powers(base: float | Tensor, dim: int) -> Tensor:
    """The wavelengths over 2 pi of unscaled RoPE: base ** (2i / dim), float32 `[dim / 2]`."""
    return base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _default(p: RopeParameters, dim: int, max_positions: int) -> Tensor:
    return 1.0 / _powers(p.rope_theta, dim)


def _linear(p: RopeParameters, dim: int, max_positions: int) -> Tensor:
    """Position interpolation (https://arxiv.org/abs/2306.15595)."""
    return _default(p, dim, max_positions) / p.factor


def _dynamic(p: RopeParameters, dim: int, max_positions: int) -> Tensor:
    """NTK-aware scaling whose base grows with the sequence; float32 `[max_positions, dim / 2]`.

    transformers rotates all keys of one forward pass by its longest position, so that a key depends on how the prompt
    was cut into passes. Here the rotation is a function of the position alone, or cached blocks could not be shared:
    row p has the frequencies of a sequence of p + 1 tokens, which is what transformers does token by token.
    """
    trained = p.original_max_position_embeddings
    lengths = torch.arange(1, max_positions + 1).clamp(min=trained)
    growth = (p.factor * lengths / trained) - (p.factor - 1)
    return 1.0 / _powers((p.rope_theta * growth ** (dim / (dim - 2)))[:, None], dim)


def _llama3(p: RopeParameters, dim: int, max_positions: int) -> Tensor:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, those between blended."""
    frequencies = _default(p, dim, max_positions)
    wavelengths = 2 * math.pi / frequencies
    trained = p.original_max_position_embeddings
    blend = (trained / wavelengths - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor)
    blended = (1 - blend) * frequencies / p.factor + blend * frequencies
    scaled = torch.where(wavelengths > trained / p.low_freq_factor, frequencies / p.factor, blended)
    return torch.where(wavelengths < trained / p.high_freq_factor, frequencies, scaled)


def _yarn(p: RopeParameters, dim: int, max_positions: int) -> Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071), section 3.2: interpolate channels that turn rarely, keep the others."""

    def channel(turns: float) -> float:
        """The channel that turns so many times over the trained context."""
        ratio = p.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(p.rope_theta))

    low, high = channel(p.beta_fast), channel(p.beta_slow)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    interpolated = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    # 1 - (1 - ramp) is not ramp in float32.
    kept = 1 - interpolated
    powers = _powers(p.rope_theta, dim)
    return 1.0 / (p.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _attention_factor(p: RopeParameters) -> float:
    """What q and k are multiplied with to keep the entropy of attention (YaRN, section 3.4)."""
    if p.rope_type != "yarn":
        return 1.0
    if p.attention_factor is not None:
        return p.attention_factor
    if p.mscale and p.mscale_all_dim:
        return entropy_scale(p.factor, p.mscale) / entropy_scale(p.factor, p.mscale_all_dim)
    return entropy_scale(p.factor)


def entropy_scale(factor: float, mscale: float = 1.0) -> float:
    """By what YaRN multiplies q and k, each, over a context `factor` times as long (section 3.4); mscale weighs it."""
    return 0.1 * mscale * math.log(max(factor, 1.0)) + 1.0


_FREQUENCIES: dict[str, Callable[[RopeParameters, int, int], Tensor]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "mrope": _default,
    "yarn": _yarn,
}

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "mrope": ("mrope_section",),
    "yarn": ("factor", "original_max_position_embeddings"),
}
