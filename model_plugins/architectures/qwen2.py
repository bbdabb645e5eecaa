"""Qwen2, Qwen2.5 and QwQ (https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115)."""

from __future__ import annotations

from sophserve.model.decoder import Attention, CausalLM, DecoderLayer, LayeredWindowConfig
from sophserve.model.layers import GatedMLP
from sophserve.plugins import Register, hookimpl


class Qwen2ForCausalLM(CausalLM[LayeredWindowConfig]):
    """The plain pre-norm decoder with biases on q, k and v; the upper layers may have a sliding window."""

    config_class = LayeredWindowConfig

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(self.context, config, self.rope, qkv_bias=True, window=config.window(index))
        mlp = GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen2ForCausalLM", Qwen2ForCausalLM)
    register("Qwen2Model", Qwen2ForCausalLM)
