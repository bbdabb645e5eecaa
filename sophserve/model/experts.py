"""Mixtures of experts (https://arxiv.org/abs/1701.06538): MLPs of which each token goes through a few.

Every rank holds a slice of every expert: however tokens choose, all ranks have the same to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Literal

import torch
from torch import Tensor

from device.interface import CanonicalWeight, DenseWeight, ExpertsWeight, PackedWeight
from device.reference import dequantize
from sophserve import fit
from sophserve.config_rules import check_chosen
from sophserve.errors import CheckpointError
from sophserve.model.canonical import MadeInTurn, are_alike, make_alike, same_order, stack_tensors, stack_weights
from sophserve.model.context import ModelContext
from sophserve.model.decoder import DecoderConfig, Size
from sophserve.model.layers import GatedMLP, Linear, PackedModule, activation
from sophserve.model.module import Module, ParameterSpec, share
from sophserve.model.quantization import WeightPart

EXPERT_OPERATORS = frozenset({"route_experts", "fused_experts"})
"""What a model with experts needs beside what others do."""

EXPERT_NAMES = {
    "model.layers.{}.mlp.gate": "layers.{}.mlp.router",
    "model.layers.{}.mlp.experts.{}.gate_proj": "layers.{}.mlp.experts.{}.gate",
    "model.layers.{}.mlp.experts.{}.up_proj": "layers.{}.mlp.experts.{}.up",
    "model.layers.{}.mlp.experts.{}.down_proj": "layers.{}.mlp.experts.{}.down",
}
"""The names of routed experts and their router in most checkpoints, for a CausalLM's checkpoint_names."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router chooses: see Ops.route_experts, whose arguments these are.

    corrected: a bias of each expert counts in the choice, and not in its weight.
    """

    top_k: int
    renormalize: bool
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    corrected: bool = False


class Router(PackedModule):
    """Chooses the experts of each token, the same on every rank."""

    def __init__(self, context: ModelContext, hidden_size: int, experts: int, routing: Routing) -> None:
        whole = WeightPart((experts, hidden_size), slice(0, experts), slice(0, hidden_size))
        super().__init__(context, {"": whole}, "router")
        self._experts = experts
        self._routing = routing
        self.e_score_correction_bias: Tensor | None = None

    def parameters(self) -> dict[str, ParameterSpec]:
        """`weight` and, where the choice is corrected, `e_score_correction_bias`, `[experts]`."""
        bias = {"e_score_correction_bias": ParameterSpec((self._experts,))} if self._routing.corrected else {}
        return super().parameters() | bias

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> CanonicalWeight:
        # What was rounded for the choice of another dtype may choose other experts, so no value is.
        [weight] = parts
        values = weight.values if isinstance(weight, DenseWeight) else dequantize(weight)
        exact = values.dtype if values.dtype == self._context.dtype else torch.float32
        return DenseWeight(stack_tensors([values], exact))

    def load_packed(self, weight: PackedWeight, tensors: Mapping[str, Tensor]) -> None:
        """Take a weight that was packed before, and of the tensors the bias."""
        self.weight = weight
        if self._routing.corrected:
            bias = stack_tensors([tensors["e_score_correction_bias"]], torch.float32)
            self.e_score_correction_bias = self._context.device.put(bias)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of x `[tokens, hidden]` the experts, best first, and their weights, both `[tokens, top_k]`."""
        routing = self._routing
        return self._context.device.ops.route_experts(
            x,
            self.weight,
            routing.top_k,
            routing.scoring,
            renormalize=routing.renormalize,
            scale=routing.scale,
            groups=routing.groups,
            top_groups=routing.top_groups,
            bias=self.e_score_correction_bias,
        )


class Experts(PackedModule):
    """The gated MLPs of a layer's experts as one weight, each split between ranks by inner features.

    count: how many there are. top_k: how many of them a token goes through. intermediate_size: inner features of one;
    held: those of them on this rank.
    """

    def __init__(self, context: ModelContext, hidden_size: int, intermediate_size: int, count: int, top_k: int) -> None:
        held = share(context, intermediate_size, "experts", fit.columns_in_words(intermediate_size))
        hidden = slice(0, hidden_size)
        inner = WeightPart((intermediate_size, hidden_size), held, hidden)
        outer = WeightPart((hidden_size, intermediate_size), hidden, held)
        parts = {"gate": inner, "up": inner, "down": outer}
        super().__init__(
            context, {f"{expert}.{name}.": part for expert in range(count) for name, part in parts.items()}, "experts"
        )
        self.count = count
        self.top_k = top_k
        self.intermediate_size = intermediate_size
        self.held = held.stop - held.start
        self._hidden_size = hidden_size

    @property
    def group_inputs(self) -> int:
        """How many inner features are quantized together at most."""
        down = [(self.formats[prefix], part) for prefix, part in self._parts.items() if prefix.endswith("down.")]
        return lcm(*(each.group_inputs(part) for each, part in down))

    @property
    def token_flops(self) -> int:
        """Operations of a row's products with the experts that it goes through."""
        return 2 * 3 * self._hidden_size * self.held * self.top_k

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> ExpertsWeight:
        dtype = self._context.dtype

        def gate_up(expert: int) -> CanonicalWeight:
            return stack_weights(parts[3 * expert : 3 * expert + 2], dtype)

        def down(expert: int) -> CanonicalWeight:
            return stack_weights(parts[3 * expert + 2 : 3 * expert + 3], dtype)

        made = MadeInTurn(gate_up, self.count), MadeInTurn(down, self.count)
        gates, ups, downs = (parts[at::3] for at in range(3))
        if are_alike([*gates, *ups]) and are_alike(downs) and all(map(same_order, gates, ups)):
            return ExpertsWeight(*made)
        return ExpertsWeight(*(make_alike(list(each), dtype) for each in made))


class SparseMLP(Module):
    """The weighted sum of the experts that a router chooses for each token, and of what all tokens go through.

    shared_size: inner features of the shared expert, if there is one. shared_gate: it is multiplied with the sigmoid of
    a logit of the token.
    """

    def __init__(
        self,
        context: ModelContext,
        hidden_size: int,
        intermediate_size: int,
        experts: int,
        hidden_act: str,
        routing: Routing,
        *,
        shared_size: int | None = None,
        shared_gate: bool = False,
    ) -> None:
        self._context = context
        self._activation = activation(hidden_act)
        self.router = Router(context, hidden_size, experts, routing)
        self.experts = Experts(context, hidden_size, intermediate_size, experts, routing.top_k)
        self.shared = GatedMLP(context, hidden_size, shared_size, hidden_act) if shared_size else None
        self.shared_gate = Linear(context, hidden_size, 1) if shared_gate else None

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same shape. Shared and chosen experts are summed over ranks at once."""
        ids, weights = self.router(x)
        shared = self.shared.partial(x) if self.shared else None
        logits = self.shared_gate(x) if self.shared_gate else None
        ops = self._context.device.ops
        y = ops.fused_experts(x, self.experts.weight, ids, weights, self._activation, shared, logits)
        return self._context.communicator.all_reduce(y)


@dataclass(frozen=True, kw_only=True)
class SparseConfig(DecoderConfig):
    """The keys of Qwen's sparse models. Layers without experts have a dense MLP of intermediate_size.

    num_local_experts: another name of num_experts, which transformers writes. norm_topk_prob: the weights of a token's
    experts sum to 1.
    """

    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: Size
    moe_intermediate_size: Size
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {count for count in (self.num_experts, self.num_local_experts) if count is not None}
        if len(given) != 1:
            problem = f"num_experts {self.num_experts} and num_local_experts {self.num_local_experts}"
            raise CheckpointError(
                f"config.json has {problem if given else 'no num_experts'}; one of them must be given"
            )
        if self.experts:
            check_chosen("num_experts", self.experts, self.num_experts_per_tok)

    @property
    def experts(self) -> int:
        """Experts of a layer that has some."""
        return self.num_experts or self.num_local_experts or 0

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return fit.has_experts(layer, self.experts, self.decoder_sparse_step, self.mlp_only_layers)


def make_mlp(
    context: ModelContext, config: SparseConfig, layer: int, shared_size: int | None = None
) -> SparseMLP | GatedMLP:
    """The MLP of a layer of Qwen's models. shared_size: inner features of an expert that all tokens go through, whose
    result a gate of its own weighs, if there is one."""
    hidden, act = config.hidden_size, config.hidden_act
    if not config.is_sparse(layer):
        return GatedMLP(context, hidden, config.intermediate_size, act)
    return SparseMLP(
        context,
        hidden,
        config.moe_intermediate_size,
        config.experts,
        act,
        Routing(top_k=config.num_experts_per_tok, renormalize=config.norm_topk_prob),
        shared_size=shared_size,
        shared_gate=shared_size is not None,
    )
