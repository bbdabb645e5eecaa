"""CLIP's vision transformer (https://arxiv.org/abs/2103.00020), as towers of models that see use it: the hidden states
of its layers, without what made one vector of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from sophserve.errors import CheckpointError
from sophserve.model.canonical import stack_tensors
from sophserve.model.context import ModelContext
from sophserve.model.decoder import Size
from sophserve.model.layers import MLP, Heads, LayerNorm, Linear
from sophserve.model.module import Module, ParameterSpec
from sophserve.model.vision import PatchEmbedding

CLIP_OPERATORS = frozenset({"linear", "layer_norm", "dense_attention"})


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The keys of config.json's vision_config that the tower obeys. image_size, patch_size: of a side, in pixels."""

    model_type: str = "clip_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: Size = 224
    patch_size: Size = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Annotated[float, Meta(ge=0, le=1)] = 1e-5

    def __post_init__(self) -> None:
        if self.model_type != "clip_vision_model":
            raise CheckpointError(
                f"config.json's vision_config is of model_type {self.model_type!r}; supported: clip_vision_model"
            )
        if self.num_channels != 3:
            raise CheckpointError(f"config.json's num_channels is {self.num_channels}; images have 3")
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json's hidden_size {self.hidden_size} is not a multiple of its num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise CheckpointError(
                f"config.json's image_size {self.image_size} is not a multiple of its patch_size {self.patch_size}"
            )

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """What the tower makes of an image: its patches, after what stands for all of it."""
        return self.side**2 + 1


class ClipEmbedding(Module):
    """Patches and what stands for the whole image, each with its position."""

    class_embedding: Tensor
    positions: Tensor

    def __init__(self, context: ModelContext, config: ClipConfig) -> None:
        self._context = context
        self._config = config
        size = config.patch_size
        self.patch_embedding = PatchEmbedding(context, (config.num_channels, size, size), config.hidden_size)

    def parameters(self) -> dict[str, ParameterSpec]:
        """`class_embedding`, `[hidden]`, and `position_embedding.weight`, `[tokens, hidden]`."""
        hidden = self._config.hidden_size
        return {
            "class_embedding": ParameterSpec((hidden,)),
            "position_embedding.weight": ParameterSpec((self._config.tokens, hidden)),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        put, dtype = self._context.device.put, self._context.dtype
        self.class_embedding = put(stack_tensors([tensors["class_embedding"]], dtype))
        self.positions = put(stack_tensors([tensors["position_embedding.weight"]], dtype))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images `[images, size, size, channels]` to `[images, tokens, hidden]`."""
        count, side, size = len(images), self._config.side, self._config.patch_size
        patches = images.view(count, side, size, side, size, -1).permute(0, 1, 3, 5, 2, 4)
        x = self.patch_embedding(patches.reshape(count * side**2, -1)).view(count, side**2, -1)
        return torch.cat([self.class_embedding.expand(count, 1, -1), x], 1) + self.positions


class ClipAttention(Module):
    """Attention of all tokens of an image to each other."""

    def __init__(self, context: ModelContext, config: ClipConfig) -> None:
        self._context = context
        hidden = config.hidden_size
        self.head_dim = hidden // config.num_attention_heads
        heads = Heads(config.num_attention_heads, self.head_dim)
        self.qkv = Linear(context, hidden, dict.fromkeys("qkv", heads), bias=True, shard="column", role="qkv")
        self.output = Linear(context, heads, hidden, bias=True, shard="row", role="attention_output")

    def __call__(self, x: Tensor, segments: list[int]) -> Tensor:
        """`[tokens, hidden]` to the same shape. segments: the tokens of each image."""
        parts = self.qkv(x).split(self.qkv.part_sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        attended = self._context.device.ops.dense_attention(q, k, v, segments, self.head_dim**-0.5)
        return self.output(attended.flatten(1))


class ClipLayer(Module):
    """Normalise, attend, add; normalise, MLP, add."""

    def __init__(self, context: ModelContext, config: ClipConfig) -> None:
        self.attention_norm = LayerNorm(context, config.hidden_size, config.layer_norm_eps)
        self.attention = ClipAttention(context, config)
        self.mlp_norm = LayerNorm(context, config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(context, config.hidden_size, config.intermediate_size, config.hidden_act)

    def __call__(self, x: Tensor, segments: list[int]) -> Tensor:
        """`[tokens, hidden]` to the same shape."""
        x = x + self.attention(self.attention_norm(x), segments)
        return x + self.mlp(self.mlp_norm(x))


class ClipTower(Module):
    """The first `count` layers of the transformer, and what comes before them."""

    def __init__(self, context: ModelContext, config: ClipConfig, count: int) -> None:
        self.config = config
        self.embedding = ClipEmbedding(context, config)
        self.norm = LayerNorm(context, config.hidden_size, config.layer_norm_eps)
        self.layers = [ClipLayer(context, config) for _ in range(count)]

    def begin(self, images: Tensor) -> Tensor:
        """What the first layer is given of normalised images `[images, size, size, channels]`: `[tokens, hidden]`, the
        tokens of each image one after the other."""
        return self.norm(self.embedding(images).flatten(0, 1))

    def image_flops(self) -> int:
        """Operations of the products of an image on this rank."""
        config, tokens = self.config, self.config.tokens
        linears = [each for layer in self.layers for each in layer.modules() if isinstance(each, Linear)]
        seen = sum(4 * layer.attention.output.in_features * tokens**2 for layer in self.layers)
        patches = self.embedding.patch_embedding.token_flops * config.side**2
        return patches + seen + tokens * sum(each.token_flops for each in linears)


def clip_names(stored: str, tower: str) -> dict[str, str]:
    """Where a tower's tensors go (CausalLM.checkpoint_names). stored: what their names begin with in the files. tower:
    the path of the tower."""
    layer = f"{stored}.encoder.layers.{{}}"
    places = f"{tower}.layers.{{}}"
    return {
        f"{stored}.embeddings": f"{tower}.embedding",
        f"{stored}.embeddings.position_embedding": f"{tower}.embedding.position_embedding",
        f"{stored}.embeddings.patch_embedding": f"{tower}.embedding.patch_embedding",
        f"{stored}.pre_layrnorm": f"{tower}.norm",
        f"{layer}.layer_norm1": f"{places}.attention_norm",
        f"{layer}.self_attn.q_proj": f"{places}.attention.qkv.q",
        f"{layer}.self_attn.k_proj": f"{places}.attention.qkv.k",
        f"{layer}.self_attn.v_proj": f"{places}.attention.qkv.v",
        f"{layer}.self_attn.out_proj": f"{places}.attention.output",
        f"{layer}.layer_norm2": f"{places}.mlp_norm",
        f"{layer}.mlp.fc1": f"{places}.mlp.up",
        f"{layer}.mlp.fc2": f"{places}.mlp.down",
        f"{stored}.post_layernorm": f"{tower}.post_norm",
    }


def left_out_of_clip(parameters: Mapping[str, str | None], tower: str, count: int, layers: int) -> set[str]:
    """Of tensors, with the places that clip_names gives them, those that a tower of `count` of all layers has no use
    for."""
    unused = {f"{tower}.post_norm.weight", f"{tower}.post_norm.bias", f"{tower}.embedding.position_ids"}
    later = tuple(f"{tower}.layers.{index}." for index in range(count, layers))
    return {name for name, place in parameters.items() if place and (place in unused or place.startswith(later))}
