"""Every operator in plain torch with float32 accumulation: the definition, and every device's oracle.

Written to be read, not to be fast. Results are computed in float32 and rounded once to the activation dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, starmap
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from device import shape_checks as checks
from device.int8_products import check_span, int8_product, int_codes
from device.interface import (
    Activation,
    AttentionMeta,
    CanonicalWeight,
    DenseWeight,
    ExpertsWeight,
    Float8Weight,
    IntWeight,
    KVCache,
    LatentUpWeight,
    PackedWeight,
    Rope,
    Rotation,
)
from device.sample_params import SampleParams, SampleResult
from device.sampling import sample


class ReferenceWeight:
    """A canonical weight as it is: the reference packs nothing."""

    def __init__(self, canonical: CanonicalWeight) -> None:
        self.canonical = canonical
        self.rounds_rows = isinstance(canonical, IntWeight) and canonical.activations != "float"
        if isinstance(canonical, IntWeight) and self.rounds_rows:
            check_span(canonical)
        self.out_features, self.in_features = canonical_shape(canonical)
        self.nbytes = sum(each.nbytes for each in vars(canonical).values() if isinstance(each, Tensor))


class ReferenceExperts:
    """An ExpertsWeight as it is."""

    def __init__(self, canonical: ExpertsWeight) -> None:
        self.gate_up = [ReferenceWeight(each) for each in canonical.gate_up]
        self.down = [ReferenceWeight(each) for each in canonical.down]
        self.experts = len(self.down)
        self.out_features, self.intermediate = self.down[0].out_features, self.down[0].in_features
        self.in_features = self.gate_up[0].in_features
        self.nbytes = sum(each.nbytes for each in self.gate_up + self.down)
        self.rounds_rows = any(each.rounds_rows for each in self.gate_up + self.down)


class ReferenceLatentUp(ReferenceWeight):
    """A LatentUpWeight as it is."""

    def __init__(self, weight: LatentUpWeight) -> None:
        super().__init__(weight.weight)
        checks.check_latent_up(weight)
        self.heads, self.nope_dim = weight.heads, weight.nope_dim
        self.v_dim = self.out_features // self.heads - self.nope_dim

    def parts(self) -> tuple[Tensor, Tensor]:
        """W_UK `[heads, nope_dim, latent_dim]` and W_UV `[heads, v_dim, latent_dim]`, float32."""
        both = dequantize(self.canonical).unflatten(0, (self.heads, -1))
        return both[:, : self.nope_dim], both[:, self.nope_dim :]


def reference_weight(weight: CanonicalWeight | ExpertsWeight | LatentUpWeight) -> PackedWeight:
    """A weight as the reference takes it."""
    if isinstance(weight, ExpertsWeight):
        return ReferenceExperts(weight)
    return ReferenceLatentUp(weight) if isinstance(weight, LatentUpWeight) else ReferenceWeight(weight)


def canonical_shape(weight: CanonicalWeight) -> tuple[int, int]:
    """out_features and in_features."""
    rows, columns = weight.values.shape
    if isinstance(weight, IntWeight):
        columns *= 8 // weight.bits
        if weight.order is not None:
            columns = int((weight.order >= 0).sum())
    return rows, columns


def dequantize(weight: CanonicalWeight) -> Tensor:
    """The float32 values of a canonical weight, `[out_features, in_features]`."""
    if isinstance(weight, DenseWeight):
        return weight.values.float()

    def spread(of_groups: Tensor) -> Tensor:
        return of_groups.float().repeat_interleave(weight.group_size, dim=1)[:, : values.shape[1]]

    if isinstance(weight, Float8Weight):
        values = weight.values.float()
        return values * spread(weight.scales)
    values = int_codes(weight).float()
    values = (values - spread(weight.zeros)) * spread(weight.scales)
    if weight.order is None:
        return values
    used = weight.order >= 0
    ordered = torch.empty(canonical_shape(weight))
    ordered[:, weight.order[used].long()] = values[:, used]
    return ordered


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation function of an MLP, elementwise. quick_gelu: GELU as CLIP approximates it."""
    if activation == "silu":
        return F.silu(x)
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def rotate(x: Tensor, rotation: Rotation, *, interleaved: bool = False) -> Tensor:
    """x `[tokens, heads, dim]` with its first rotary_dim channels rotated, in x's dtype."""
    half = rotation.cos.shape[1]
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    turned, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def write_slots(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Put rows `[tokens, heads, dim]` into slots of a cache `[blocks, block_size, heads, dim]`."""
    block_size = cache.shape[1]
    cache[slots // block_size, slots % block_size] = rows


def read_slots(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """The first length positions of a sequence as float32 `[length, heads, dim]`."""
    block_size = cache.shape[1]
    at = torch.arange(length)
    return cache[block_table.long()[at // block_size], at % block_size].float()


def visible(cached: int, new: int, window: int | None) -> Tensor:
    """bool `[new, cached + new]`: which positions each new token sees."""
    query = torch.arange(cached, cached + new)[:, None]
    key = torch.arange(cached + new)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


class ReferenceOps:
    """The operators of `device.interface.Ops`, where each is documented."""

    def embedding(
        self,
        ids: Tensor,
        table: Tensor | PackedWeight,
        first: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        checks.check_embedding(ids, table)
        if not isinstance(table, Tensor):
            assert isinstance(table, ReferenceWeight)
            canonical = table.canonical
            if isinstance(canonical, DenseWeight):
                table = canonical.values
            else:
                table = dequantize(canonical).to(checks.check_rows_dtype(dtype))
        rows = ids.long() - (first or 0)
        if first is None:
            checks.check_ids(rows, len(table))
            return table[rows]
        elsewhere = (rows < 0) | (rows >= len(table))
        return table[rows.masked_fill(elsewhere, 0)].masked_fill(elsewhere[:, None], 0)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        checks.check_rms_norm(x, weight, residual)
        if residual is not None:
            x = x + residual
        exact = x.float()
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        return (exact * scale * weight.float()).to(x.dtype), x

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        checks.check_layer_norm(x, weight, bias)
        return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        assert isinstance(weight, ReferenceWeight)
        checks.check_linear("linear", x, weight, bias, activation)
        y = _linear(x.float(), weight, bias)
        return (y if activation is None else activate(y, activation)).to(x.dtype)

    def gated_mlp(
        self,
        x: Tensor,
        gate_up: PackedWeight,
        down: PackedWeight,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        """`down(activation(gate) * up)`, whose inner value is rounded to x's dtype as down's input."""
        assert isinstance(gate_up, ReferenceWeight) and isinstance(down, ReferenceWeight)
        checks.check_gated_mlp(x, gate_up, down, activation, gate_up_bias, down_bias)
        gate, up = _linear(x.float(), gate_up, gate_up_bias).chunk(2, dim=-1)
        inner = (activate(gate, activation) * up).to(x.dtype)
        return _linear(inner.float(), down, down_bias).to(x.dtype)

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: KVCache,
        step: AttentionMeta,
        rope: Rope | None,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        checks.check_paged_attention(q, k, v, kv, rope, window)
        checks.check_step("paged_attention", q.shape[0], kv, step)
        if rope is not None:
            turns = step.rotation(rope, self)
            q, k = (rotate(x, turns, interleaved=rope.interleaved) for x in (q, k))
        write_slots(kv.keys, step.slot_mapping.long(), k)
        write_slots(kv.values, step.slot_mapping.long(), v)

        group = q.shape[1] // k.shape[1]
        out = torch.empty(*q.shape[:2], v.shape[2])
        for rows, new, cached, table in _sequences(step):
            keys = read_slots(kv.keys, table, cached + new).repeat_interleave(group, dim=1)
            values = read_slots(kv.values, table, cached + new).repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), keys) * scale
            scores = scores.masked_fill(~visible(cached, new, window), float("-inf"))
            out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        return out.to(q.dtype)

    def paged_latent_attention(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv: KVCache,
        kv_up: PackedWeight,
        step: AttentionMeta,
        rope: Rope,
        scale: float,
        q_up: PackedWeight | None = None,
    ) -> Tensor:
        assert isinstance(kv_up, ReferenceLatentUp)
        q = q if q_up is None else self.linear(q, q_up)
        checks.check_latent_attention(q, latent, k_rope, kv, kv_up, rope)
        checks.check_step("paged_latent_attention", q.shape[0], kv, step)
        nope, turns = kv_up.nope_dim, step.rotation(rope, self)
        q = q.unflatten(1, (kv_up.heads, -1))
        q_rope, k_turned = (rotate(x, turns, interleaved=rope.interleaved) for x in (q[..., nope:], k_rope[:, None]))
        write_slots(kv.keys, step.slot_mapping.long(), latent[:, None])
        write_slots(kv.values, step.slot_mapping.long(), k_turned)

        up_keys, up_values = kv_up.parts()
        q_latent = torch.einsum("qhn,hnl->qhl", q[..., :nope].float(), up_keys)
        out = torch.empty(*q.shape[:2], kv_up.v_dim)
        for rows, new, cached, table in _sequences(step):
            latents = read_slots(kv.keys, table, cached + new)[:, 0]
            keys = read_slots(kv.values, table, cached + new)[:, 0]
            scores = torch.einsum("qhl,kl->hqk", q_latent[rows], latents)
            scores = (scores + torch.einsum("qhr,kr->hqk", q_rope[rows].float(), keys)) * scale
            scores = scores.masked_fill(~visible(cached, new, None), float("-inf"))
            mixed = torch.einsum("hqk,kl->qhl", scores.softmax(-1), latents)
            out[rows] = torch.einsum("qhl,hvl->qhv", mixed, up_values)
        return out.to(q.dtype)

    def route_experts(
        self,
        x: Tensor,
        router: PackedWeight,
        top_k: int,
        scoring: Literal["softmax", "sigmoid"],
        *,
        renormalize: bool,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(router, ReferenceWeight)
        checks.check_route_experts(x, router, top_k, scoring, groups, top_groups, bias)
        logits = _linear(x.float(), router)
        scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
        choice = scores if bias is None else scores + bias.float()
        if top_groups < groups:
            grouped = choice.unflatten(-1, (groups, -1))
            best = grouped.topk(1 if bias is None else min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, _largest(best, top_groups), True)
            choice = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        ids = _largest(choice, top_k)
        weights = scores.gather(1, ids)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return ids.int(), weights * scale

    def fused_experts(
        self,
        x: Tensor,
        experts: PackedWeight,
        ids: Tensor,
        weights: Tensor,
        activation: Activation,
        shared: Tensor | None = None,
        shared_logits: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(experts, ReferenceExperts)
        checks.check_fused_experts(x, experts, ids, weights, activation, shared, shared_logits)
        checks.check_chosen(ids, experts)
        slots = torch.zeros(*ids.shape, x.shape[1])
        for expert in ids.unique().tolist():
            rows, slot = (ids == expert).nonzero(as_tuple=True)
            gate_up, down = experts.gate_up[expert], experts.down[expert]
            slots[rows, slot] = ReferenceOps.gated_mlp(self, x[rows], gate_up, down, activation).float()
        total = torch.zeros(x.shape)
        for slot in range(ids.shape[1]):
            total += weights[:, slot, None] * slots[:, slot]
        if shared is not None:
            total += shared.float() * (1 if shared_logits is None else shared_logits.float().sigmoid())
        return total.to(x.dtype)

    def dense_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Sequence[int],
        scale: float,
        rotation: Rotation | None = None,
    ) -> Tensor:
        checks.check_segments(q, k, v, segments, rotation)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out = torch.empty(q.shape)
        for rows in _consecutive(segments):
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k[rows].float()) * scale
            out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows].float())
        return out.to(q.dtype)

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        return sample(logits, params)


def _largest(values: Tensor, count: int) -> Tensor:
    """int64 `[rows, count]`: where the largest are, of equal ones the first."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _linear(x: Tensor, weight: ReferenceWeight, bias: Tensor | None = None) -> Tensor:
    canonical, addend = weight.canonical, None if bias is None else bias.float()
    if isinstance(canonical, IntWeight) and canonical.activations != "float":
        product = int8_product(x, canonical)
        return product if addend is None else product + addend
    return F.linear(x, dequantize(canonical), addend)


def _sequences(step: AttentionMeta) -> Iterator[tuple[slice, int, int, Tensor]]:
    """Of each sequence its rows, how many tokens are new and how many cached, and its block table."""
    new, cached = step.input_lengths.tolist(), step.cached_lengths.tolist()
    return zip(_consecutive(new), new, cached, step.block_tables, strict=True)


def _consecutive(lengths: Iterable[int]) -> Iterator[slice]:
    return starmap(slice, pairwise(accumulate(lengths, initial=0)))
