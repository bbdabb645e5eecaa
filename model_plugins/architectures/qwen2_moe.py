"""Qwen1.5-MoE and Qwen2-57B-A14B (https://arxiv.org/abs/2407.10671): Qwen2 with experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderLayer, LayeredWindowConfig, Size
from sophserve.model.experts import EXPERT_NAMES, EXPERT_OPERATORS, SparseConfig, make_mlp
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(SparseConfig, LayeredWindowConfig):
    """qkv_bias: on the projections of queries, keys and values. sliding_window: 0 where there is none."""

    shared_expert_intermediate_size: Size
    qkv_bias: bool = True
    sliding_window: Annotated[int, Meta(ge=0)] | None = 4096

    def _slides(self, layer: int) -> bool:
        # Unlike Qwen2's upper layers, every second of the lower ones.
        return layer % 2 == 0 and layer < self.max_window_layers


class Qwen2MoeForCausalLM(CausalLM[Qwen2MoeConfig]):
    """Qwen2 whose MLPs are experts, and one that all tokens go through, weighted by a gate of its own."""

    config_class = Qwen2MoeConfig
    operators = CausalLM.operators | EXPERT_OPERATORS
    checkpoint_names = (
        DECODER_NAMES
        | EXPERT_NAMES
        | {
            "model.layers.{}.mlp.shared_expert.gate_proj": "layers.{}.mlp.shared.gate_up.gate",
            "model.layers.{}.mlp.shared_expert.up_proj": "layers.{}.mlp.shared.gate_up.up",
            "model.layers.{}.mlp.shared_expert.down_proj": "layers.{}.mlp.shared.down",
            "model.layers.{}.mlp.shared_expert_gate": "layers.{}.mlp.shared_gate",
        }
    )

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(self.context, config, self.rope, qkv_bias=config.qkv_bias, window=config.window(index))
        mlp = make_mlp(self.context, config, index, config.shared_expert_intermediate_size)
        return DecoderLayer(self.context, config, attention, mlp)


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen2MoeForCausalLM", Qwen2MoeForCausalLM)
    register("Qwen2MoeModel", Qwen2MoeForCausalLM)
