"""DeepSeek V3, V3.1 and R1 (https://arxiv.org/abs/2412.19437): V2 whose experts are chosen with a bias."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from model_plugins.architectures.deepseek_v2 import DeepseekV2Config, DeepseekV2ForCausalLM
from sophserve.model.context import ModelContext
from sophserve.model.decoder import MtpLayer, Size
from sophserve.model.latent_attention import LatentAttention
from sophserve.model.rope import Positive
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(DeepseekV2Config):
    """V2's keys. The weights of a token's experts are scaled whether they are normalised or not."""

    first_k_dense_replace: Annotated[int, Meta(ge=0)] = 3
    n_group: Size | None = 8
    topk_group: Size | None = 4
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 2.5

    @property
    def weight_scale(self) -> float:
        return self.routed_scaling_factor


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """V2 with other ways to choose experts, and behind its layers one that predicts a further token."""

    config_class = DeepseekV3Config
    # Its embedding (embed_tokens) and head (shared_head.head) are the model's.
    checkpoint_names = DeepseekV2ForCausalLM.checkpoint_names | {
        "model.layers.{}.enorm": "layers.{}.token_norm",
        "model.layers.{}.hnorm": "layers.{}.hidden_norm",
        "model.layers.{}.eh_proj": "layers.{}.join",
        "model.layers.{}.shared_head.norm": "layers.{}.norm",
    }

    def __init__(self, config: dict[str, Any], context: ModelContext) -> None:
        super().__init__(config, context)
        if context.mtp:
            attention = LatentAttention(context, self.config, self.rope)
            self.mtp = MtpLayer(context, self.config, attention, self._make_experts())

    @classmethod
    def has_mtp(cls, config: dict[str, Any], stored: Collection[str] | None) -> bool:
        """config.json says num_nextn_predict_layers: 1 also where the files have none."""
        if stored is None:
            return bool(config.get("num_nextn_predict_layers"))
        return cls.parse(config).num_hidden_layers in _joining(stored)

    def left_out(self, stored: Collection[str]) -> set[str]:
        """What is of further layers; of the one that is made, what other names lead to."""
        layers = {layer for layer in _joining(stored) if layer >= self.config.num_hidden_layers}
        return {name for name in stored if _layer(name) in layers}

    def parameter_of(self, tensor: str) -> str | None:
        found = super().parameter_of(tensor)
        return self._mtp + found.removeprefix(self._last) if found and found.startswith(self._last) else found

    def tensor_of(self, parameter: str) -> str:
        is_further = parameter.startswith(self._mtp)
        return super().tensor_of(self._last + parameter.removeprefix(self._mtp) if is_further else parameter)

    @property
    def _last(self) -> str:
        """What the names of the further layer's parameters would begin with if it were one of `layers`."""
        return f"layers.{self.config.num_hidden_layers}."

    _mtp = "mtp."


_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


def _layer(name: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def _joining(stored: Collection[str]) -> set[int]:
    """The layers that join (eh_proj) the embedding of a token to a hidden state (section 2.2)."""
    layers = (_layer(name) for name in stored if ".eh_proj." in name)
    return {layer for layer in layers if layer is not None}


@hookimpl
def register_architectures(register: Register) -> None:
    register("DeepseekV3ForCausalLM", DeepseekV3ForCausalLM)
    register("DeepseekV3Model", DeepseekV3ForCausalLM)
