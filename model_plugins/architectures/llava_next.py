"""LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next): Llama or Mistral that is given images by CLIP.

An image is seen twice: as a whole in the tower's own size, and in tiles of that size at a higher resolution.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from msgspec import Meta
from torch import Tensor

from sophserve.config_rules import check_word
from sophserve.errors import CheckpointError
from sophserve.model.canonical import stack_tensors
from sophserve.model.clip import CLIP_OPERATORS, ClipConfig, ClipTower, clip_names, left_out_of_clip
from sophserve.model.config import parse_config, parse_part
from sophserve.model.context import ModelContext
from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderConfig, DecoderLayer, Size
from sophserve.model.layers import MLP, GatedMLP
from sophserve.model.module import Module, ParameterSpec
from sophserve.model.vision import Encoding, VisionLanguageModel
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(DecoderConfig):
    """What texts of all forms obey, which are Llama but for a sliding window."""

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def window(self) -> int | None:
        """Tokens that a token sees; None for all."""
        return None


@dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """Of the text, what Llama's class of transformers has for keys that a text_config leaves out.

    vision_feature_layer: the hidden state of the tower that is taken, or several that are put side by side; 0 is that
    before the first layer, -1 that after the last. image_grid_pinpoints: sizes that tiles may cover, for the processor.
    """

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)] = 1e-6

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    use_image_newline_parameter: bool = True
    image_grid_pinpoints: list[Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # The rows of a grid have no place for what stands for a whole tile.
        check_word("vision_feature_select_strategy", self.vision_feature_select_strategy, ["default"])
        if not self.use_image_newline_parameter:
            raise CheckpointError("config.json's use_image_newline_parameter is false, which is not supported")


@dataclass(frozen=True, kw_only=True)
class LlavaNextMistralConfig(LlavaNextConfig):
    """The same with Mistral's defaults."""

    intermediate_size: Size = 14336
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096

    @property
    def window(self) -> int | None:
        return self.sliding_window


C = TypeVar("C", bound=LlavaConfig)
TEXTS = {"llama": LlavaNextConfig, "mistral": LlavaNextMistralConfig}


class LlavaEncoder(Module):
    """What only images go through: tower, projector, and what ends a row of patches."""

    image_newline: Tensor

    def __init__(
        self,
        context: ModelContext,
        vision: ClipConfig,
        feature_layers: Sequence[int],
        hidden_size: int,
        projector_act: str,
        *,
        projector_bias: bool = True,
    ) -> None:
        self._context = context
        self._hidden_size = hidden_size
        count = vision.num_hidden_layers
        for layer in feature_layers:
            if not -count - 1 <= layer <= count:
                raise CheckpointError(f"config.json takes hidden state {layer} of a tower with {count} layers")
        self.states = [layer % (count + 1) for layer in feature_layers]
        if not self.states:
            raise CheckpointError("config.json takes no hidden state of the tower; give vision_feature_layer one")
        self.tower = ClipTower(context, vision, max(self.states))
        inputs = len(self.states) * vision.hidden_size
        self.projector = MLP(context, inputs, hidden_size, projector_act, hidden_size, bias=projector_bias)

    def parameters(self) -> dict[str, ParameterSpec]:
        """`image_newline`, `[hidden]`."""
        return {"image_newline": ParameterSpec((self._hidden_size,))}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        values = stack_tensors([tensors["image_newline"]], self._context.dtype)
        self.image_newline = self._context.device.put(values)

    def encode(self, images: Tensor, grid: Sequence[int]) -> Encoding:
        """As VisionLanguageModel.encode, of normalised images `[tiles, size, size, channels]`."""
        tokens = self.tower.config.tokens
        segments = [tokens] * len(images)
        x = self.tower.begin(images.to(self._context.dtype))
        kept = {0: x.clone()} if 0 in self.states else {}
        for index, layer in enumerate(self.tower.layers, 1):
            x = layer(x, segments).clone()  # for a step of others may come in between
            if index in self.states:
                kept[index] = x
            yield
        features = torch.cat([kept[state] for state in self.states], -1).view(len(images), tokens, -1)
        projected = self.projector(features[:, 1:].flatten(0, 1))
        return self._packed(projected.view(len(images), tokens - 1, -1), grid)

    def _packed(self, features: Tensor, grid: Sequence[int]) -> Tensor:
        """The patches of the whole image, then the rows of the grid, without what was padded, each with its end."""
        rows, columns, top, left = grid
        base, tiles = features[0], features[1:]
        newline = self.image_newline[None]
        if not len(tiles):
            return torch.cat([base, newline])
        side, hidden = self.tower.config.side, self._hidden_size
        patches = tiles.view(rows, columns, side, side, hidden).transpose(1, 2)
        patches = patches.reshape(rows * side, columns * side, hidden)
        shown = patches[top : rows * side - top, left : columns * side - left]
        ends = newline.expand(len(shown), 1, hidden)
        return torch.cat([base, torch.cat([shown, ends], 1).flatten(0, 1)])

    def flops(self, placeholders: int) -> int:
        """As VisionLanguageModel.encoder_flops."""
        patches = self.tower.config.tokens - 1
        tiles = -(-placeholders // patches)
        projector = self.projector.up.token_flops + self.projector.down.token_flops
        return tiles * (self.tower.image_flops() + patches * projector)


class LlavaModel(VisionLanguageModel[C]):
    """A decoder with an encoder."""

    operators = CausalLM.operators | CLIP_OPERATORS
    encoder: LlavaEncoder

    def __init__(self, config: dict[str, Any], context: ModelContext) -> None:
        super().__init__(config, context)
        self.encoder = self.make_encoder(config)
        self.encoder_pieces = len(self.encoder.tower.layers)

    def make_layer(self, index: int) -> DecoderLayer:
        config, bias = self.config, self.config.attention_bias
        attention = Attention(self.context, config, self.rope, qkv_bias=bias, output_bias=bias, window=config.window)
        mlp = GatedMLP(
            self.context, config.hidden_size, config.intermediate_size, config.hidden_act, bias=config.mlp_bias
        )
        return DecoderLayer(self.context, config, attention, mlp)

    @abstractmethod
    def make_encoder(self, config: dict[str, Any]) -> LlavaEncoder:
        """That of a config.json."""

    def encode(self, pixels: Tensor, grid: Sequence[int]) -> Encoding:
        images = self.context.device.put(self.normalization(pixels))
        return self.encoder.encode(images, grid)

    def encoder_flops(self, placeholders: int) -> int:
        return self.encoder.flops(placeholders)

    def left_out(self, stored: Collection[str]) -> set[str]:
        """Layers of the tower behind the hidden state that is taken."""
        tower = self.encoder.tower
        places = {name: self.parameter_of(name) for name in stored}
        return left_out_of_clip(places, "encoder.tower", len(tower.layers), tower.config.num_hidden_layers)


def _text_names(model: str, head: str) -> dict[str, str]:
    """DECODER_NAMES with what stands for `model` and `lm_head`."""
    return {
        head if name == "lm_head" else f"{model}{name.removeprefix('model')}": place
        for name, place in DECODER_NAMES.items()
    }


class LlavaNextForConditionalGeneration(LlavaModel[LlavaNextConfig]):
    """transformers' form of it. Each of its versions has put other words before the names of each part."""

    config_class = LlavaNextConfig
    checkpoint_names = (
        _text_names("language_model.model", "language_model.lm_head")
        | clip_names("model.vision_tower.vision_model", "encoder.tower")
        | _text_names("model.language_model", "lm_head")
        | clip_names("model.vision_tower", "encoder.tower")
        | {
            "model": "encoder",
            "model.multi_modal_projector.linear_1": "encoder.projector.up",
            "model.multi_modal_projector.linear_2": "encoder.projector.down",
        }
    )

    def make_encoder(self, config: dict[str, Any]) -> LlavaEncoder:
        layers = self.config.vision_feature_layer
        return LlavaEncoder(
            self.context,
            parse_part(ClipConfig, config, "vision_config"),
            [layers] if isinstance(layers, int) else layers,
            self.config.hidden_size,
            self.config.projector_hidden_act,
            projector_bias=self.config.multimodal_projector_bias,
        )

    @classmethod
    def parse(cls, config: dict[str, Any]) -> LlavaNextConfig:
        kind = (config.get("text_config") or {}).get("model_type", "llama")
        if kind not in TEXTS:
            raise CheckpointError(f"config.json's text_config is of model_type {kind!r}; supported: {', '.join(TEXTS)}")
        return parse_config(TEXTS[kind], config)


@hookimpl
def register_architectures(register: Register) -> None:
    register("LlavaNextForConditionalGeneration", LlavaNextForConditionalGeneration)
