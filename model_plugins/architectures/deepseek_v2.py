"""DeepSeek V2 and V2-Lite (https://arxiv.org/abs/2405.04434): latent attention, and experts chosen within groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from sophserve import config_rules as rules
from sophserve.model.decoder import DECODER_NAMES, CausalLM, DecoderLayer, Size
from sophserve.model.experts import EXPERT_NAMES, EXPERT_OPERATORS, Routing, SparseMLP
from sophserve.model.latent_attention import LATENT_NAMES, LATENT_OPERATORS, LatentAttention, LatentConfig
from sophserve.model.layers import GatedMLP
from sophserve.model.rope import Positive
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class DeepseekV2Config(LatentConfig):
    """first_k_dense_replace: so many layers come first that have a dense MLP of intermediate_size. moe_layer_freq: of
    the others, those whose index is a multiple of it have experts. n_shared_experts: all tokens go through one MLP as
    wide as so many experts.

    topk_method: greedy takes the best of all experts; group_limited_greedy those of the topk_group groups, of n_group,
    whose best is largest; noaux_tc those of the groups whose two best are largest, by scores with a bias that does not
    count in the weights. scoring_func: softmax or sigmoid.
    """

    moe_intermediate_size: Size
    n_routed_experts: Size
    num_experts_per_tok: Size
    n_shared_experts: Annotated[int, Meta(ge=0)] | None = None
    first_k_dense_replace: Annotated[int, Meta(ge=0)] = 0
    moe_layer_freq: Size = 1
    n_group: Size | None = None
    topk_group: Size | None = None
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: Positive = 1.0

    def __post_init__(self) -> None:
        rules.check_word("topk_method", self.topk_method, rules.TOPK_METHODS)
        rules.check_word("scoring_func", self.scoring_func, rules.SCORES)
        rules.check_chosen("n_routed_experts", self.n_routed_experts, self.num_experts_per_tok, *self.groups)
        rules.check_dense_layers(self.first_k_dense_replace, self.num_hidden_layers)

    @property
    def groups(self) -> tuple[int, int]:
        """How many groups the experts are in, and in how many of them those of a token are."""
        if self.topk_method in rules.UNGROUPED:
            return 1, 1
        return self.n_group or 1, self.topk_group or 1

    @property
    def weight_scale(self) -> float:
        """What the weights of a token's experts are multiplied with. DeepSeek's own V2 either makes them sum to 1 or
        scales them; transformers never normalises them, vLLM would do both. Published models only scale."""
        return 1.0 if self.norm_topk_prob else self.routed_scaling_factor

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


class DeepseekV2ForCausalLM(CausalLM[DeepseekV2Config]):
    """The pre-norm decoder with latent attention, whose upper layers have experts."""

    config_class = DeepseekV2Config
    operators = (CausalLM.operators - {"paged_attention"}) | LATENT_OPERATORS | EXPERT_OPERATORS
    checkpoint_names = (
        DECODER_NAMES
        | LATENT_NAMES
        | EXPERT_NAMES
        | {
            "model.layers.{}.mlp.shared_experts.gate_proj": "layers.{}.mlp.shared.gate_up.gate",
            "model.layers.{}.mlp.shared_experts.up_proj": "layers.{}.mlp.shared.gate_up.up",
            "model.layers.{}.mlp.shared_experts.down_proj": "layers.{}.mlp.shared.down",
        }
    )

    def make_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = LatentAttention(self.context, config, self.rope)
        if not config.is_sparse(index):
            mlp = GatedMLP(self.context, config.hidden_size, config.intermediate_size, config.hidden_act)
            return DecoderLayer(self.context, config, attention, mlp)
        return DecoderLayer(self.context, config, attention, self._make_experts())

    def _make_experts(self) -> SparseMLP:
        config = self.config
        groups, top_groups = config.groups
        routing = Routing(
            top_k=config.num_experts_per_tok,
            renormalize=config.norm_topk_prob,
            scoring="sigmoid" if config.scoring_func == "sigmoid" else "softmax",
            scale=config.weight_scale,
            groups=groups,
            top_groups=top_groups,
            corrected=config.topk_method == "noaux_tc",
        )
        return SparseMLP(
            self.context,
            config.hidden_size,
            config.moe_intermediate_size,
            config.n_routed_experts,
            config.hidden_act,
            routing,
            shared_size=(config.n_shared_experts or 0) * config.moe_intermediate_size,
        )


@hookimpl
def register_architectures(register: Register) -> None:
    register("DeepseekV2ForCausalLM", DeepseekV2ForCausalLM)
    register("DeepseekV2Model", DeepseekV2ForCausalLM)
