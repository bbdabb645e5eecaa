"""Multi-head latent attention (https://arxiv.org/abs/2405.04434): of each token one small vector is kept, which the
keys and values of all heads are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from device.interface import CacheSpec, CanonicalWeight, IntWeight, LatentUpWeight, PackedWeight, Rope, StepInputs
from sophserve import fit
from sophserve.model.canonical import stack_weights
from sophserve.model.context import ModelContext
from sophserve.model.decoder import DecoderConfig, Size
from sophserve.model.layers import CachedModule, Heads, Linear, PackedModule, RMSNorm
from sophserve.model.module import Module, share
from sophserve.model.quantization import WeightPart
from sophserve.model.rope import entropy_scale, make_rope

LATENT_NAMES = {
    "model.layers.{}.self_attn.q_proj": "layers.{}.attention.q",
    "model.layers.{}.self_attn.q_a_proj": "layers.{}.attention.down.q",
    "model.layers.{}.self_attn.q_a_layernorm": "layers.{}.attention.q_norm",
    "model.layers.{}.self_attn.q_b_proj": "layers.{}.attention.q_up",
    "model.layers.{}.self_attn.kv_a_proj_with_mqa": "layers.{}.attention.down.kv",
    "model.layers.{}.self_attn.kv_a_layernorm": "layers.{}.attention.latent_norm",
    "model.layers.{}.self_attn.kv_b_proj": "layers.{}.attention.kv_up",
    "model.layers.{}.self_attn.o_proj": "layers.{}.attention.output",
}
"""Where the tensors of latent attention go."""

LATENT_OPERATORS = frozenset({"paged_latent_attention"})
"""What a model with latent attention needs in the place of paged_attention."""

# Of the norms of latents. Models are trained with it, whatever config.json's rms_norm_eps is.
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LatentConfig(DecoderConfig):
    """q_lora_rank: channels of what queries are made of; null where they are made of the hidden state itself.
    kv_lora_rank: those of what keys and values are made of. qk_nope_head_dim, qk_rope_head_dim: channels of a query
    head that are not rotated, and that are. attention_bias: on the projections to latents, and on the output.

    num_key_value_heads and head_dim say nothing here: there are as many as query heads, and files differ in what
    they call a head.
    """

    q_lora_rank: Size | None = 1536
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    rope_interleave: bool = True
    attention_bias: bool = False

    def __post_init__(self) -> None:
        """Nothing is to be checked: no size follows from others."""

    @property
    def head_size(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def score_scale(self) -> float:
        """What scores are multiplied with. mscale_all_dim is of all channels, so it counts in the scores and not in the
        rotation of some, and twice: for queries and for keys."""
        parameters = self.rope_parameters
        scaled = parameters.rope_type != "default"
        growth = entropy_scale(parameters.factor, parameters.mscale_all_dim) if scaled else 1.0
        return self.head_size**-0.5 * growth**2

    def rope(self, max_positions: int) -> Rope:
        """That of the rotated channels. Where the file has only one of mscale and mscale_all_dim, DeepSeek's own model
        takes 1 for the first and 0 for the second; transformers takes neither."""
        parameters = self.rope_parameters
        if parameters.rope_type == "yarn" and parameters.attention_factor is None:
            rotated = entropy_scale(parameters.factor, parameters.mscale or 1.0)
            factor = rotated / entropy_scale(parameters.factor, parameters.mscale_all_dim)
            parameters = replace(parameters, attention_factor=factor)
        rope = make_rope(parameters, self.qk_rope_head_dim, max_positions)
        return replace(rope, interleaved=self.rope_interleave)


class LatentUp(PackedModule):
    """What makes keys and values of the latent, for the heads of this rank. heads: how many those are."""

    rounds_activations = False

    def __init__(self, context: ModelContext, config: LatentConfig) -> None:
        heads, size = config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim
        held = share(context, heads, "latent_up", fit.heads_in_words(heads, size))
        rows, latent = slice(held.start * size, held.stop * size), config.kv_lora_rank
        super().__init__(context, {"": WeightPart((heads * size, latent), rows, slice(0, latent))}, "latent_up")
        self.heads, self._nope_dim = held.stop - held.start, config.qk_nope_head_dim

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> LatentUpWeight:
        dtype = self._context.dtype
        weight = stack_weights(parts, dtype)
        if isinstance(weight, IntWeight):
            # Its products are with latents of the cache, which nobody rounds.
            weight = replace(weight, activations="float")
        return LatentUpWeight(weight, self.heads, self._nope_dim, dtype)


class LatentCache(CachedModule):
    """Causal attention over the latents of one layer, which every rank holds whole."""

    def __init__(self, context: ModelContext, config: LatentConfig, rope: Rope, heads: int) -> None:
        self._context = context
        latent, rotated = config.kv_lora_rank, config.qk_rope_head_dim
        self.cache = CacheSpec(1, (latent, rotated), context.dtype, replicated=True, latent=True)
        self.window = None
        # A score of latent and rotated channels, and a sum of latents.
        self.pair_flops = 2 * heads * (2 * latent + rotated)
        self._rope = rope
        self._scale = config.score_scale

    def __call__(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_up: PackedWeight,
        step: StepInputs,
        q_up: PackedWeight | None = None,
    ) -> Tensor:
        """q `[tokens, heads * head_size]`, or what q_up makes that of; latent, normalised, `[tokens, latent]`;
        k_rope `[tokens, rotated]`. Nothing is rotated yet. Returns `[tokens, heads * v_head_dim]`.
        """
        self._context.beat()
        ops = self._context.device.ops
        out = ops.paged_latent_attention(q, latent, k_rope, self.kv, kv_up, step, self._rope, self._scale, q_up=q_up)
        return out.flatten(-2)


class LatentAttention(Module):
    """Queries and latents of the hidden state, attention, output. What a token keeps is split between no ranks, so the
    projections to it are not, either."""

    def __init__(self, context: ModelContext, config: LatentConfig, rope: Rope) -> None:
        hidden, q_rank = config.hidden_size, config.q_lora_rank
        q = Heads(config.num_attention_heads, config.head_size)
        kept = {"kv": config.kv_lora_rank + config.qk_rope_head_dim}
        bias = config.attention_bias
        self.q = Linear(context, hidden, q, shard="column", role="qkv") if q_rank is None else None
        self.q_up = Linear(context, q_rank, q, shard="column", role="qkv") if q_rank is not None else None
        self.q_norm = RMSNorm(context, q_rank, _EPS) if q_rank is not None else None
        self.down = Linear(context, hidden, kept if q_rank is None else {"q": q_rank, **kept}, bias=bias)
        self.latent_norm = RMSNorm(context, config.kv_lora_rank, _EPS)
        self.kv_up = LatentUp(context, config)
        self.attention = LatentCache(context, config, rope, self.kv_up.heads)
        values = Heads(config.num_attention_heads, config.v_head_dim)
        self.output = Linear(context, values, hidden, bias=bias, shard="row", role="attention_output")
        self._sizes = [config.kv_lora_rank, config.qk_rope_head_dim]

    def __call__(self, x: Tensor, step: StepInputs) -> Tensor:
        """`[tokens, hidden]` to the same shape."""
        parts = self.down(x).split(self.down.part_sizes, dim=-1)
        latent, k_rope = parts[-1].split(self._sizes, dim=-1)
        latent, _ = self.latent_norm(latent)
        if self.q_up and self.q_norm:
            q, q_up = self.q_norm(parts[0])[0], self.q_up.weight
        else:
            assert self.q
            q, q_up = self.q(x), None
        return self.output(self.attention(q, latent, k_rope, self.kv_up.weight, step, q_up))
