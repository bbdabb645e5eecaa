"""Mistral 7B and Nemo (https://arxiv.org/abs/2310.06825): Llama with a sliding window in every layer."""

from __future__ import annotations

from dataclasses import dataclass

from sophserve.model.decoder import Attention, CausalLM, DecoderConfig, DecoderLayer, Size
from sophserve.model.layers import GatedMLP
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """sliding_window: tokens that a token sees; null for all. A file without the key means that of the first model."""

    sliding_window: Size | None = 4096


class MistralForCausalLM(CausalLM[MistralConfig]):
    """The plain pre-norm decoder, without biases."""

    config_class = MistralConfig

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(self.context, config, self.rope, window=config.sliding_window)
        mlp = GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("MistralForCausalLM", MistralForCausalLM)
    register("MistralModel", MistralForCausalLM)
