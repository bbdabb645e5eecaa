"""Qwen1.5-MoE and Qwen2-57B-A14B (https://arxiv.org/abs/2407.10671): Qwen2 with experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderLayer, LayeredWindowConfig, Size
from sophserve.model.experts import EXPERT_NAMES, EXPERT_OPERATORS, Routing, SparseConfig, SparseMLP
from sophserve.model.layers import GatedMLP
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
        return DecoderLayer(self.context, config, attention, self._mlp(index))

    def _mlp(self, index: int) -> SparseMLP | GatedMLP:
        config = self.config
        if not config.is_sparse(index):
            return GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
        return SparseMLP(
            self.context,
            config.hidden_size,
            config.moe_intermediate_size,
            config.experts,
            config.hidden_act,
            Routing(top_k=config.num_experts_per_tok, renormalize=config.norm_topk_prob),
            shared_size=config.shared_expert_intermediate_size,
            shared_gate=True,
        )


@hookimpl
def register_architectures(register: Register) -> None:
    register("Qwen2MoeForCausalLM", Qwen2MoeForCausalLM)
    register("Qwen2MoeModel", Qwen2MoeForCausalLM)
