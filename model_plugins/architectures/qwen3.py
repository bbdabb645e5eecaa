"""Qwen3, dense (https://arxiv.org/abs/2505.09388): queries and keys are normalised in each head."""

from __future__ import annotations

from dataclasses import dataclass

from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderLayer, LayeredWindowConfig, Size
from sophserve.model.layers import GatedMLP
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LayeredWindowConfig):
    """head_dim: of its own, not hidden_size / num_attention_heads. attention_bias: on all four projections.
    use_qk_norm: queries and keys are normalised; only some files say so."""

    head_dim: Size = 128
    attention_bias: bool = False
    use_qk_norm: bool = True


class Qwen3ForCausalLM(CausalLM[Qwen3Config]):
    """The plain pre-norm decoder with normalised queries and keys; the upper layers may have a sliding window."""

    config_class = Qwen3Config
    checkpoint_names = DECODER_NAMES | {
        "model.layers.{}.self_attn.q_norm": "layers.{}.attention.q_norm",
        "model.layers.{}.self_attn.k_norm": "layers.{}.attention.k_norm",
    }

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        bias, window = config.attention_bias, config.window(index)
        attention = Attention(
            self.context, config, self.rope, qkv_bias=bias, output_bias=bias, qk_norm=config.use_qk_norm, window=window
        )
        mlp = GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen3ForCausalLM", Qwen3ForCausalLM)
    register("Qwen3Model", Qwen3ForCausalLM)
