"""Shape checks that every device makes before it computes. All raise ValueError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from device.interface import (
    AttentionMeta,
    IntWeight,
    KVCache,
    LatentUpWeight,
    PackedExperts,
    PackedLatentUp,
    PackedWeight,
    Rope,
    Rotation,
)
from device.sample_params import SampleParams

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu")
_PER_ROW = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions", "repetition", "presence", "frequency")


def refuse(operator: str, message: str, *values: object) -> NoReturn:
    """Raise ValueError. The values fill the message, a tensor by its shape."""
    shown = (list(value.shape) if isinstance(value, Tensor) else value for value in values)
    raise ValueError(f"{operator}: {message.format(*shown)}")


def check_activations(operator: str, *tensors: Tensor) -> None:
    """All of one activation dtype."""
    dtype = tensors[0].dtype
    if dtype not in ACTIVATION_DTYPES:
        refuse(operator, "{} is not an activation dtype", dtype)
    for tensor in tensors[1:]:
        if tensor.dtype != dtype:
            refuse(operator, "one dtype expected, got {} and {}", dtype, tensor.dtype)


def check_embedding(ids: Tensor, table: Tensor | PackedWeight) -> None:
    """ids `[tokens]`, table `[vocab, hidden]`."""
    if ids.dim() != 1:
        refuse("embedding", "got ids {}", ids)
    if isinstance(table, Tensor) and table.dim() != 2:
        refuse("embedding", "got table {}", table)


def check_rows_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the rows of a quantized table."""
    if dtype not in ACTIVATION_DTYPES:
        refuse("embedding", "of a quantized table the rows need an activation dtype, got {}", dtype)
    return dtype


def check_ids(ids: Tensor, rows: int) -> None:
    """ids within a table of so many rows."""
    if not _within(ids, rows):
        refuse("embedding", "ids must be in [0, {})", rows)


def check_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """x `[..., hidden]`, weight `[hidden]`, residual of x's shape."""
    check_activations("rms_norm", x, *([] if residual is None else [residual]))
    if x.dim() < 1 or weight.shape != x.shape[-1:]:
        refuse("rms_norm", "x {} does not fit weight {}", x, weight)
    if residual is not None and residual.shape != x.shape:
        refuse("rms_norm", "residual {} does not have x's shape {}", residual, x)


def check_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """x `[..., hidden]`, weight and bias `[hidden]`."""
    check_activations("layer_norm", x)
    if x.dim() < 1 or not weight.shape == bias.shape == x.shape[-1:]:
        refuse("layer_norm", "x {} does not fit weight {} and bias {}", x, weight, bias)


def check_linear(
    operator: str, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: str | None = None
) -> None:
    """x `[tokens, in_features]`, bias `[out_features]`, and a known activation or none."""
    check_activations(operator, x)
    if activation is not None:
        _check_activation(operator, activation)
    outputs, inputs = weight.out_features, weight.in_features
    if x.dim() != 2 or x.shape[1] != inputs:
        refuse(operator, "x {} does not fit a weight of {} x {}", x, outputs, inputs)
    if bias is not None and bias.shape != (outputs,):
        refuse(operator, "bias {} does not fit {} outputs", bias, outputs)


def _check_activation(operator: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        refuse(operator, "activation {!r} is none of {}", activation, ", ".join(ACTIVATIONS))


def check_gated_mlp(
    x: Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    activation: str,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> None:
    """gate_up twice as tall as down is wide, biases as long as the outputs, and a known activation."""
    _check_activation("gated_mlp", activation)
    check_linear("gated_mlp", x, gate_up, gate_up_bias)
    if down_bias is not None and down_bias.shape != (down.out_features,):
        refuse("gated_mlp", "bias {} does not fit {} outputs", down_bias, down.out_features)
    if gate_up.out_features != 2 * down.in_features:
        refuse("gated_mlp", "gate_up has {} outputs, down needs twice {}", gate_up.out_features, down.in_features)


def check_step(operator: str, tokens: int, kv: KVCache, step: AttentionMeta) -> None:
    """Lengths sum to tokens, and no block or slot lies outside the cache."""
    blocks, block_size = kv.keys.shape[:2]
    sequences, cached, tables = step.input_lengths.numel(), step.cached_lengths.numel(), step.block_tables.shape
    if cached != sequences or tables[:1] != (sequences,):
        message = "{} input_lengths, {} cached_lengths and {} block tables must be as many"
        refuse(operator, message, sequences, cached, tables[0])
    new, slots = int(step.input_lengths.sum()), step.slot_mapping.numel()
    if not new == tokens == slots:
        refuse(operator, "{} tokens do not fit input_lengths, which sum to {}, or {} slots", tokens, new, slots)
    if not tokens:
        return
    if int(step.input_lengths.min()) < 1 or int(step.cached_lengths.min()) < 0:
        refuse(operator, "every sequence needs at least one new token, and no negative count of cached ones")
    longest, room = int((step.input_lengths + step.cached_lengths).max()), tables[1] * block_size
    if longest > room:
        refuse(operator, "a sequence of {} tokens does not fit its block table of {}", longest, room)
    for name, ids, limit in (("block id", step.block_tables, blocks), ("slot", step.slot_mapping, blocks * block_size)):
        if not _within(ids, limit):
            refuse(operator, "a {} lies outside [0, {})", name, limit)


def check_paged_attention(q: Tensor, k: Tensor, v: Tensor, kv: KVCache, rope: Rope | None, window: int | None) -> None:
    """q, k, v, the caches and the RoPE tables fit each other."""
    name = "paged_attention"
    check_activations(name, q, k, v, kv.keys, kv.values)
    if not q.dim() == k.dim() == v.dim() == 3:
        refuse(name, "got q {}, k {}, v {}", q, k, v)
    blocks, block_size, kv_heads, head_dim = kv.keys.shape
    tokens, heads = q.shape[:2]
    if not (
        k.shape == (tokens, kv_heads, head_dim)
        and q.shape[2] == head_dim
        and v.shape[:2] == (tokens, kv_heads)
        and kv.values.shape == (blocks, block_size, kv_heads, v.shape[2])
        and kv_heads > 0
        and heads % kv_heads == 0
    ):
        refuse(name, "q {}, k {}, v {} do not fit a cache of {}, {}", q, k, v, kv.keys, kv.values)
    _check_rope(name, rope, head_dim)
    if window is not None and window < 1:
        refuse(name, "window must be at least 1, got {}", window)


def check_latent_attention(
    q: Tensor, latent: Tensor, k_rope: Tensor, kv: KVCache, kv_up: PackedLatentUp, rope: Rope
) -> None:
    """q, the latent, the caches, kv_up and the RoPE tables fit each other."""
    name = "paged_latent_attention"
    check_activations(name, q, latent, k_rope, kv.keys, kv.values)
    if not (q.dim() == latent.dim() == k_rope.dim() == 2 and kv.keys.dim() == 4):
        refuse(name, "got q {}, latent {}, k_rope {}, a cache of {}", q, latent, k_rope, kv.keys)
    tokens, rope_dim = k_rope.shape
    if not (
        latent.shape == (tokens, kv_up.in_features)
        and q.shape == (tokens, kv_up.heads * (kv_up.nope_dim + rope_dim))
        and kv_up.nope_dim > 0
        and kv_up.v_dim > 0
        and kv.keys.shape[2:] == (1, latent.shape[1])
        and kv.values.shape[2:] == (1, rope_dim)
        and kv.keys.shape[:2] == kv.values.shape[:2]
    ):
        message = "q {}, latent {}, k_rope {} do not fit {} heads with {} + {} channels of latents of {}, caches {}, {}"
        sizes = kv_up.heads, kv_up.nope_dim, kv_up.v_dim, kv_up.in_features
        refuse(name, message, q, latent, k_rope, *sizes, kv.keys, kv.values)
    _check_rope(name, rope, rope_dim)


def check_latent_up(weight: LatentUpWeight) -> None:
    """A weight that takes activations as they are: its products are with latents of the cache."""
    if isinstance(weight.weight, IntWeight) and weight.weight.activations != "float":
        message = "a weight of latents takes activations as they are, not rounded to int8 in {}"
        refuse("paged_latent_attention", message, weight.weight.activations)


def _check_rope(operator: str, rope: Rope | None, head_dim: int) -> None:
    if rope is None:
        return
    if not (rope.cos.shape == rope.sin.shape and rope.cos.dim() == 2 and 2 * rope.cos.shape[1] <= head_dim):
        refuse(operator, "RoPE tables do not fit {} channels", head_dim)


def check_route_experts(
    x: Tensor, router: PackedWeight, top_k: int, scoring: str, groups: int, top_groups: int, bias: Tensor | None
) -> None:
    """Groups divide the experts, and those kept hold at least top_k."""
    name, experts = "route_experts", router.out_features
    check_linear(name, x, router)
    if scoring not in ("softmax", "sigmoid"):
        refuse(name, "scoring must be softmax or sigmoid, got {!r}", scoring)
    if bias is not None and bias.shape != (experts,):
        refuse(name, "bias must have {} entries", experts)
    if not (1 <= top_groups <= groups and experts % groups == 0 and 1 <= top_k <= experts // groups * top_groups):
        refuse(name, "cannot take {} of {} experts in {} of {} groups", top_k, experts, top_groups, groups)


def check_fused_experts(
    x: Tensor,
    experts: PackedExperts,
    ids: Tensor,
    weights: Tensor,
    activation: str,
    shared: Tensor | None,
    shared_logits: Tensor | None,
) -> None:
    """As many ids as weights; a shared result for each row, and its logits only with it. See check_chosen, too."""
    name = "fused_experts"
    check_linear(name, x, experts)
    _check_activation(name, activation)
    if not (ids.dim() == 2 and ids.shape == weights.shape and len(ids) == len(x)):
        refuse(name, "x {}, ids {} and weights {} do not fit", x, ids, weights)
    if shared is not None and (shared.shape != x.shape or shared.dtype != x.dtype):
        refuse(name, "shared {} does not fit x {}", shared, x)
    if shared_logits is not None and not (
        shared is not None and shared_logits.shape == (len(x), 1) and shared_logits.dtype == x.dtype
    ):
        refuse(name, "shared_logits must be [{}, 1] of {}, and come with shared", len(x), x.dtype)


def check_chosen(ids: Tensor, experts: PackedExperts) -> None:
    """ids within the experts."""
    if not _within(ids, experts.experts):
        refuse("fused_experts", "ids must be in [0, {})", experts.experts)


def check_sample(logits: Tensor, params: SampleParams) -> None:
    """Every per-row tensor has one entry a row, every mask row covers the vocabulary."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        refuse("sample", "logits must be [rows, vocab], got {}", logits)
    if not logits.is_floating_point():
        refuse("sample", "logits must be floating point, got {}", logits.dtype)
    rows, vocab = logits.shape
    for name in _PER_ROW:
        value = getattr(params, name)
        if value is not None and value.shape != (rows,):
            refuse("sample", "{} must have one entry for each of {} rows", name, rows)
    words = -(-vocab // 32)
    if params.mask is not None and params.mask.shape != (rows, words):
        refuse("sample", "mask must be [{}, {}]", rows, words)
    if params.num_logprobs > vocab:
        refuse("sample", "num_logprobs must be at most {}", vocab)
    for names in (("bias_rows", "bias_ids", "bias_values"), ("penalty_rows", "penalty_ids", "output_counts")):
        given = [tensor for name in names if (tensor := getattr(params, name)) is not None]
        if len(given) not in (0, 3) or len({tensor.shape for tensor in given}) > 1:
            refuse("sample", "{}, {} and {} come together and are equally long", *names)
        if given and not (_within(given[0], rows) and _within(given[1], vocab)):
            refuse("sample", "{} must be in [0, {}) and {} in [0, {})", names[0], rows, names[1], vocab)


def check_segments(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[int], rotation: Rotation | None = None) -> None:
    """All of one shape, segment lengths that sum to tokens, and a rotation of each token that a head has room for."""
    name = "dense_attention"
    check_activations(name, q, k, v)
    if not (q.dim() == 3 and q.shape == k.shape == v.shape):
        refuse(name, "q {}, k {} and v {} must be [tokens, heads, head_dim], all of one shape", q, k, v)
    if sum(segments) != q.shape[0] or min(segments, default=0) < 0:
        refuse(name, "segments sum to {}, not to {} tokens", sum(segments), q.shape[0])
    for turns in rotation or ():
        if turns.dim() != 2 or len(turns) != len(q) or 2 * turns.shape[1] > q.shape[2]:
            refuse(name, "a rotation {} does not fit q {}", turns, q)


def _within(ids: Tensor, limit: int) -> bool:
    """Whether all ids are in [0, limit)."""
    if not ids.numel():
        return True
    low, high = torch.aminmax(ids)
    return int(low) >= 0 and int(high) < limit
