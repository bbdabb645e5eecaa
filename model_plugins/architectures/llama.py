"""Llama 1 to 3.3 (https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783)."""

from __future__ import annotations

from dataclasses import dataclass

from sophserve.model.decoder import Attention, CausalLM, DecoderConfig, DecoderLayer
from sophserve.model.layers import GatedMLP
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """attention_bias: on all four projections of attention. mlp_bias: on all three of the MLP."""

    attention_bias: bool = False
    mlp_bias: bool = False


class LlamaForCausalLM(CausalLM[LlamaConfig]):
    """The plain pre-norm decoder: RMSNorm, grouped-query attention, SwiGLU."""

    config_class = LlamaConfig

    def make_layer(self, index: int) -> DecoderLayer:
        config, bias = self.config, self.config.attention_bias
        attention = Attention(self.context, config, self.rope, qkv_bias=bias, output_bias=bias)
        mlp = GatedMLP(
            self.context, config.hidden_size, config.intermediate_size, config.hidden_act, bias=config.mlp_bias
        )
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("LlamaForCausalLM", LlamaForCausalLM)
    register("LlamaModel", LlamaForCausalLM)
