"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923): Qwen2 that is given images by a tower of its own.

The tower takes an image of any size in patches. In most layers a patch sees those of its window alone. Four patches
make one embedding. A token of text has one position, one of an image three: when, how far down, how far right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from device.interface import CanonicalWeight, PackedWeight, Rope, Rotation
from sophserve.errors import CheckpointError
from sophserve.model.canonical import stack_weights, take_rows
from sophserve.model.config import parse_config, parse_part
from sophserve.model.context import ModelContext
from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderLayer, LayeredWindowConfig, Size
from sophserve.model.layers import MLP, GatedMLP, Heads, Linear, PackedModule, RMSNorm
from sophserve.model.module import Module
from sophserve.model.quantization import DenseFormat, WeightPart
from sophserve.model.rope import make_rope
from sophserve.model.vision import Encoding, Normalization, PatchEmbedding, VisionLanguageModel
from sophserve.plugins import Register, hookimpl

# Of the tower's norms; those of the text have their own.
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The keys of config.json's vision_config that the tower obeys, with the defaults of transformers.

    window_size: of a window's side, in pixels. fullatt_block_indexes: the layers without windows. spatial_merge_size:
    patches of the side of a square that makes one embedding.
    """

    depth: Size = 32
    hidden_size: Size = 3584
    hidden_act: str = "silu"
    intermediate_size: Size = 3420
    num_heads: Size = 16
    in_channels: Size = 3
    patch_size: Size = 14
    temporal_patch_size: Size = 2
    spatial_merge_size: Size = 2
    window_size: Size = 112
    fullatt_block_indexes: list[int] = field(default_factory=lambda: [7, 15, 23, 31])
    out_hidden_size: Size = 3584

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise CheckpointError(
                f"config.json's vision_config has {self.num_heads} num_heads in a hidden_size of {self.hidden_size}; "
                "each needs a multiple of 4 channels"
            )
        if self.window_size < self.unit:
            raise CheckpointError(
                f"config.json's vision_config has a window_size of {self.window_size}; it must be at least its "
                f"patch_size times its spatial_merge_size, {self.unit}"
            )
        if self.in_channels != 3:
            raise CheckpointError(f"config.json's vision_config has {self.in_channels} in_channels; images have 3")

    @property
    def unit(self) -> int:
        """Pixels of the side of a square that makes one embedding."""
        return self.patch_size * self.spatial_merge_size

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig(LayeredWindowConfig):
    """Qwen2's with a tower, and a rope whose angles go by three axes. text_config: where files have the others."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any]

    def rope(self, max_positions: int) -> Rope:
        parameters = self.rope_parameters
        sections = parameters.mrope_section or (16, 24, 24)
        return make_rope(replace(parameters, mrope_section=sections), self.head_size, max_positions)


class FusedQKV(Linear):
    """Queries, keys and values of as many heads each, which are one tensor on disk."""

    def __init__(self, context: ModelContext, hidden_size: int, heads: Heads) -> None:
        super().__init__(context, hidden_size, dict.fromkeys("qkv", heads), bias=True, shard="column", role="qkv")
        each = heads.count * heads.size
        held = [torch.arange(each)[part.rows] + place * each for place, part in enumerate(self._parts.values())]
        self._rows = torch.cat(held)
        self._parts = {"": WeightPart((3 * each, hidden_size), slice(0, 3 * each), slice(0, hidden_size))}
        self.formats = {"": DenseFormat()}

    def load_packed(self, weight: PackedWeight, tensors: Mapping[str, Tensor]) -> None:
        super().load_packed(weight, {"bias": tensors["bias"][self._rows]})

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> CanonicalWeight:
        return stack_weights([take_rows(part, self._rows) for part in parts], self._context.dtype)


class VisionAttention(Module):
    """Attention of patches to those of their segment, whether before or behind them."""

    def __init__(self, context: ModelContext, config: VisionConfig) -> None:
        self._context = context
        self.head_dim = config.head_size
        heads = Heads(config.num_heads, self.head_dim)
        self.qkv = FusedQKV(context, config.hidden_size, heads)
        self.output = Linear(context, heads, config.hidden_size, bias=True, shard="row", role="attention_output")

    def __call__(self, x: Tensor, segments: Sequence[int], rotation: Rotation) -> Tensor:
        """`[patches, hidden]` to the same shape."""
        parts = self.qkv(x).split(self.qkv.part_sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        attended = self._context.device.ops.dense_attention(q, k, v, segments, self.head_dim**-0.5, rotation)
        return self.output(attended.flatten(1))


class VisionBlock(Module):
    """Normalise, attend, add; normalise, MLP, add."""

    def __init__(self, context: ModelContext, config: VisionConfig) -> None:
        hidden = config.hidden_size
        self.attention_norm = RMSNorm(context, hidden, EPS)
        self.attention = VisionAttention(context, config)
        self.mlp_norm = RMSNorm(context, hidden, EPS)
        self.mlp = GatedMLP(context, hidden, config.intermediate_size, config.hidden_act, bias=True)

    def __call__(self, x: Tensor, segments: Sequence[int], rotation: Rotation) -> Tensor:
        """`[patches, hidden]` to the same shape, in memory of its own."""
        attended = self.attention(self.attention_norm(x)[0], segments, rotation)
        normalised, residual = self.mlp_norm(attended, x)
        return residual + self.mlp(normalised)


class VisionEncoder(Module):
    """What only images go through: the tower, and the merger that makes embeddings of squares of patches.

    An image stands in the order of its windows from the first layer to the last, so that each is a segment.
    """

    def __init__(self, context: ModelContext, config: VisionConfig, theta: float, hidden_size: int) -> None:
        self._context = context
        self.config = config
        self._theta = theta
        size, merged = config.patch_size, config.hidden_size * config.spatial_merge_size**2
        kernel = (config.in_channels, config.temporal_patch_size, size, size)
        self.patch_embedding = PatchEmbedding(context, kernel, config.hidden_size)
        self.blocks = [VisionBlock(context, config) for _ in range(config.depth)]
        self.norm = RMSNorm(context, config.hidden_size, EPS)
        self.merger = MLP(context, merged, merged, "gelu", hidden_size)

    def encode(self, pixels: Tensor, normalization: Normalization, grid: Sequence[int]) -> Encoding:
        """As VisionLanguageModel.encode."""
        _, rows, columns = grid
        config, merge = self.config, self.config.spatial_merge_size
        order, windows = window_order(rows // merge, columns // merge, config.window_size // config.unit)
        windows = [count * merge**2 for count in windows]
        patches = self._patches(in_squares(_cut(pixels, rows, columns), merge)[order], normalization)
        x = self.patch_embedding(patches)
        rotation = self._rotation(rows, columns, order)
        for index, block in enumerate(self.blocks):
            x = block(x, [len(x)] if index in config.fullatt_block_indexes else windows, rotation).clone()
            yield
        return self.merger(self.norm(x)[0].view(len(order), -1))[order.argsort()]

    def _patches(self, pixels: Tensor, normalization: Normalization) -> Tensor:
        """uint8 `[squares, patches of each, size, size, channels]` to `[patches, values]`, channel by channel. A still
        image is the same at all times of a patch."""
        values = normalization(pixels.flatten(0, 1)).permute(0, 3, 1, 2)[:, :, None]
        times = values.expand(-1, -1, self.config.temporal_patch_size, -1, -1)
        return self._context.device.put(times.to(self._context.dtype).flatten(1))

    def _rotation(self, rows: int, columns: int, order: Tensor) -> Rotation:
        """How far each patch is down turns the first half of a head's pairs of channels, how far right the other."""
        places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
        places = in_squares(places, self.config.spatial_merge_size)[order].flatten(0, 1).float()
        half = self.config.head_size // 2
        frequencies = 1.0 / self._theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = (places[..., None] * frequencies).flatten(1).double()
        put = self._context.device.put
        return Rotation(put(angles.cos().float()), put(angles.sin().float()))

    def flops(self, placeholders: int) -> int:
        """As VisionLanguageModel.encoder_flops."""
        config = self.config
        patches = placeholders * config.spatial_merge_size**2
        window = (config.window_size // config.unit * config.spatial_merge_size) ** 2
        total = patches * self.patch_embedding.token_flops
        for index, block in enumerate(self.blocks):
            seen = patches if index in config.fullatt_block_indexes else min(window, patches)
            pair = 4 * block.attention.qkv.part_sizes[0]
            products = sum(each.token_flops for each in block.modules() if isinstance(each, PackedModule))
            total += patches * (products + seen * pair)
        return total + placeholders * (self.merger.up.token_flops + self.merger.down.token_flops)


def _cut(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """`[height, width, channels]` to patches `[rows, columns, size, size, channels]`."""
    size = len(pixels) // rows
    return pixels.view(rows, size, columns, size, -1).transpose(1, 2)


def in_squares(x: Tensor, side: int) -> Tensor:
    """`[rows, columns, ...]` to `[squares, side * side, ...]`: squares row by row, and in each what it has likewise."""
    rows, columns, *rest = x.shape
    cut = x.view(rows // side, side, columns // side, side, *rest).transpose(1, 2)
    return cut.reshape(-1, side * side, *rest)


def window_order(rows: int, columns: int, side: int) -> tuple[Tensor, list[int]]:
    """Which of `rows * columns` things, counted row by row, come one after the other if those of a window do, int64;
    and how many each window has, of which the last of a row or column may be smaller."""
    places = torch.arange(rows * columns).view(rows, columns)
    windows = [part.flatten() for band in places.split(side) for part in band.split(side, 1)]
    return torch.cat(windows), [len(window) for window in windows]


def _axial_theta(vision: Mapping[str, Any]) -> float:
    """The base of the tower's rotations. Raises CheckpointError for others than transformers has."""
    given = vision.get("rope_parameters")
    given = {} if given is None else given
    theta, kind = (given.get(key, default) for key, default in (("rope_theta", 10000.0), ("rope_type", "axial")))
    is_number = isinstance(theta, int | float) and not isinstance(theta, bool) and theta > 1
    if kind != "axial" or not is_number or set(given) - {"rope_theta", "rope_type"}:
        raise CheckpointError(
            f"config.json's vision_config has rope_parameters {given!r}; supported: axial, by rope_theta"
        )
    return float(theta)


def _names() -> dict[str, str]:
    """Where tensors go by the names that most files have, after those that a model has in memory."""
    blocks, places = "visual.blocks.{}", "encoder.blocks.{}"
    tower = {
        "visual.patch_embed.proj": "encoder.patch_embedding",
        f"{blocks}.norm1": f"{places}.attention_norm",
        f"{blocks}.attn.qkv": f"{places}.attention.qkv",
        f"{blocks}.attn.proj": f"{places}.attention.output",
        f"{blocks}.norm2": f"{places}.mlp_norm",
        f"{blocks}.mlp.gate_proj": f"{places}.mlp.gate_up.gate",
        f"{blocks}.mlp.up_proj": f"{places}.mlp.gate_up.up",
        f"{blocks}.mlp.down_proj": f"{places}.mlp.down",
        "visual.merger.ln_q": "encoder.norm",
        "visual.merger.mlp.0": "encoder.merger.up",
        "visual.merger.mlp.2": "encoder.merger.down",
    }
    text = {name.replace("model.", "model.language_model.", 1): place for name, place in DECODER_NAMES.items()}
    return text | {f"model.{name}": place for name, place in tower.items()} | DECODER_NAMES | tower


class Qwen2_5_VLForConditionalGeneration(VisionLanguageModel[Qwen2_5_VLConfig]):
    """Qwen2 with an encoder."""

    config_class = Qwen2_5_VLConfig
    operators = CausalLM.operators | {"dense_attention"}
    checkpoint_names = _names()
    encoder: VisionEncoder

    def __init__(self, config: dict[str, Any], context: ModelContext) -> None:
        super().__init__(config, context)
        vision = parse_part(VisionConfig, config, "vision_config")
        if vision.out_hidden_size != self.config.hidden_size:
            raise CheckpointError(
                f"config.json's vision_config has an out_hidden_size of {vision.out_hidden_size}, but the text's "
                f"hidden_size is {self.config.hidden_size}"
            )
        self.encoder = VisionEncoder(context, vision, _axial_theta(config["vision_config"]), self.config.hidden_size)
        self.encoder_pieces = vision.depth

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Qwen2_5_VLConfig:
        return parse_config(cls.config_class, {"rope_theta": 1e6, **config})

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(self.context, config, self.rope, qkv_bias=True, window=config.window(index))
        mlp = GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
        return DecoderLayer(self.context, config, attention, mlp)

    def encode(self, pixels: Tensor, grid: Sequence[int]) -> Encoding:
        """pixels `[height, width, channels]`. grid: times, of which there is one, rows and columns of patches."""
        return self.encoder.encode(pixels, self.normalization, grid)

    def encoder_flops(self, placeholders: int) -> int:
        return self.encoder.flops(placeholders)

    def axis_positions(self, grid: Sequence[int], placeholders: int) -> tuple[Tensor, int]:
        """All of an image happens at once; text goes on behind its longer side."""
        rows, columns = (each // self.encoder.config.spatial_merge_size for each in grid[1:])
        down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        axes = torch.stack([torch.zeros_like(down), down, right]).flatten(1)
        return axes.int(), max(rows, columns)


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLForConditionalGeneration)
