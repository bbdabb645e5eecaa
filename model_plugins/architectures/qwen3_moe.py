"""Qwen3 with experts, such as Qwen3-30B-A3B and Qwen3-235B-A22B (https://arxiv.org/abs/2505.09388)."""

from __future__ import annotations

from dataclasses import dataclass

from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderLayer, Size
from sophserve.model.experts import EXPERT_NAMES, EXPERT_OPERATORS, SparseConfig, make_mlp
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(SparseConfig):
    """attention_bias: on all four projections. use_qk_norm: queries and keys are normalised, as Qwen3-Coder's files
    say and others do not. sliding_window: of every layer, where use_sliding_window says so; max_window_layers means
    nothing here."""

    attention_bias: bool = False
    use_qk_norm: bool = True
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096


class Qwen3MoeForCausalLM(CausalLM[Qwen3MoeConfig]):
    """The pre-norm decoder with normalised queries and keys, its MLPs experts."""

    config_class = Qwen3MoeConfig
    operators = CausalLM.operators | EXPERT_OPERATORS
    checkpoint_names = (
        DECODER_NAMES
        | EXPERT_NAMES
        | {
            "model.layers.{}.self_attn.q_norm": "layers.{}.attention.q_norm",
            "model.layers.{}.self_attn.k_norm": "layers.{}.attention.k_norm",
        }
    )

    def make_layer(self, index: int) -> DecoderLayer:
        config, bias = self.config, self.config.attention_bias
        window = config.sliding_window if config.use_sliding_window else None
        attention = Attention(
            self.context, config, self.rope, qkv_bias=bias, output_bias=bias, qk_norm=config.use_qk_norm, window=window
        )
        mlp = make_mlp(self.context, config, index)
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen3MoeForCausalLM", Qwen3MoeForCausalLM)
    register("Qwen3MoeModel", Qwen3MoeForCausalLM)
