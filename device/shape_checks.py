"""Shape checks that every device makes before it computes. All raise ValueError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from device.interface import AttentionMeta, KVCache, PackedWeight, Rope
from device.sample_params import SampleParams

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def require(ok: bool, operator: str, message: str, *values: object) -> None:
    """Raise ValueError unless ok. The values fill the message, a tensor by its shape; that costs nothing when ok."""
    if not ok:
        shown = (list(value.shape) if isinstance(value, Tensor) else value for value in values)
        raise ValueError(f"{operator}: {message.format(*shown)}")


def check_activations(operator: str, *tensors: Tensor) -> None:
    """All of one activation dtype."""
    dtype = tensors[0].dtype
    require(dtype in ACTIVATION_DTYPES, operator, "{} is not an activation dtype", dtype)
    for tensor in tensors[1:]:
        require(tensor.dtype == dtype, operator, "one dtype expected, got {} and {}", dtype, tensor.dtype)


def check_embedding(ids: Tensor, table: Tensor | PackedWeight) -> None:
    """ids `[tokens]`, table `[vocab, hidden]`."""
    require(ids.dim() == 1, "embedding", "got ids {}", ids)
    require(not isinstance(table, Tensor) or table.dim() == 2, "embedding", "got table {}", table)


def check_ids(ids: Tensor, rows: int) -> None:
    """ids within a table of so many rows."""
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        require(low >= 0 and high < rows, "embedding", "ids must be in [0, {})", rows)


def check_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """x `[..., hidden]`, weight `[hidden]`, residual of x's shape."""
    check_activations("rms_norm", x, *([] if residual is None else [residual]))
    require(
        x.dim() >= 1 and tuple(weight.shape) == tuple(x.shape[-1:]),
        "rms_norm",
        "x {} does not fit weight {}",
        x,
        weight,
    )
    if residual is not None:
        require(residual.shape == x.shape, "rms_norm", "residual {} does not have x's shape {}", residual, x)


def check_linear(operator: str, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> None:
    """x `[tokens, in_features]`, bias `[out_features]`."""
    check_activations(operator, x)
    require(
        x.dim() == 2 and x.shape[1] == weight.in_features,
        operator,
        "x {} does not fit a weight of {} x {}",
        x,
        weight.out_features,
        weight.in_features,
    )
    if bias is not None:
        require(
            tuple(bias.shape) == (weight.out_features,),
            operator,
            "bias {} does not fit {} outputs",
            bias,
            weight.out_features,
        )


def check_gated_mlp(x: Tensor, gate_up: PackedWeight, down: PackedWeight, activation: str) -> None:
    """gate_up twice as tall as down is wide, and a known activation."""
    require(activation in ACTIVATIONS, "gated_mlp", "activation {!r} is none of {}", activation, ", ".join(ACTIVATIONS))
    check_linear("gated_mlp", x, gate_up)
    require(
        gate_up.out_features == 2 * down.in_features,
        "gated_mlp",
        "gate_up has {} outputs, down needs twice {}",
        gate_up.out_features,
        down.in_features,
    )


def check_step(operator: str, tokens: int, kv: KVCache, step: AttentionMeta) -> None:
    """Lengths sum to tokens, and no block or slot lies outside the cache."""
    blocks, block_size = kv.keys.shape[:2]
    sequences = step.input_lengths.numel()
    require(
        step.cached_lengths.numel() == sequences and step.block_tables.shape[:1] == (sequences,),
        operator,
        "{} input_lengths, {} cached_lengths and {} block tables must be as many",
        sequences,
        step.cached_lengths.numel(),
        step.block_tables.shape[0],
    )
    require(
        int(step.input_lengths.sum()) == tokens == step.slot_mapping.numel(),
        operator,
        "{} tokens do not fit input_lengths, which sum to {}, or {} slots",
        tokens,
        int(step.input_lengths.sum()),
        step.slot_mapping.numel(),
    )
    if not tokens:
        return
    require(
        int(step.input_lengths.min()) >= 1 and int(step.cached_lengths.min()) >= 0,
        operator,
        "every sequence needs at least one new token, and no negative count of cached ones",
    )
    longest = int((step.input_lengths + step.cached_lengths).max())
    room = step.block_tables.shape[1] * block_size
    require(longest <= room, operator, "a sequence of {} tokens does not fit its block table of {}", longest, room)
    for name, ids, limit in (
        ("block id", step.block_tables, blocks),
        ("slot", step.slot_mapping, blocks * block_size),
    ):
        low, high = (int(bound) for bound in torch.aminmax(ids))
        require(low >= 0 and high < limit, operator, "a {} lies outside [0, {})", name, limit)


def check_paged_attention(q: Tensor, k: Tensor, v: Tensor, kv: KVCache, rope: Rope | None, window: int | None) -> None:
    """q, k, v, the caches and the RoPE tables fit each other."""
    name = "paged_attention"
    check_activations(name, q, k, v, kv.keys, kv.values)
    require(q.dim() == k.dim() == v.dim() == 3, name, "got q {}, k {}, v {}", q, k, v)
    blocks, block_size, kv_heads, head_dim = kv.keys.shape
    tokens, heads = q.shape[:2]
    require(
        tuple(k.shape) == (tokens, kv_heads, head_dim)
        and q.shape[2] == head_dim
        and tuple(v.shape[:2]) == (tokens, kv_heads)
        and tuple(kv.values.shape) == (blocks, block_size, kv_heads, v.shape[2])
        and kv_heads > 0
        and heads % kv_heads == 0,
        name,
        "q {}, k {}, v {} do not fit a cache of {}, {}",
        q,
        k,
        v,
        kv.keys,
        kv.values,
    )
    _check_rope(name, rope, head_dim)
    require(window is None or window >= 1, name, "window must be at least 1, got {}", window)


def check_latent_attention(q: Tensor, latent: Tensor, k_rope: Tensor, kv: KVCache, kv_up: Tensor, rope: Rope) -> None:
    """q, the latent, the caches, kv_up and the RoPE tables fit each other."""
    name = "paged_latent_attention"
    check_activations(name, q, latent, k_rope, kv.keys, kv.values, kv_up)
    require(
        q.dim() == kv_up.dim() == 3 and latent.dim() == k_rope.dim() == 2 and kv.keys.dim() == 4,
        name,
        "got q {}, latent {}, k_rope {}, kv_up {}",
        q,
        latent,
        k_rope,
        kv_up,
    )
    tokens, heads, head_dim = q.shape
    require(
        tuple(latent.shape) == (tokens, kv_up.shape[2])
        and k_rope.shape[0] == tokens
        and kv_up.shape[0] == heads
        and head_dim - k_rope.shape[1] in range(1, kv_up.shape[1])
        and tuple(kv.keys.shape[2:]) == (1, latent.shape[1])
        and tuple(kv.values.shape[2:]) == (1, k_rope.shape[1])
        and kv.keys.shape[:2] == kv.values.shape[:2],
        name,
        "q {}, latent {}, k_rope {}, kv_up {} do not fit each other or a cache of {}, {}",
        q,
        latent,
        k_rope,
        kv_up,
        kv.keys,
        kv.values,
    )
    _check_rope(name, rope, k_rope.shape[1])


def _check_rope(operator: str, rope: Rope | None, head_dim: int) -> None:
    require(
        rope is None
        or (rope.cos.shape == rope.sin.shape and rope.cos.dim() == 2 and 2 * rope.cos.shape[1] <= head_dim),
        operator,
        "RoPE tables do not fit {} channels",
        head_dim,
    )


def check_route_experts(
    logits: Tensor, top_k: int, scoring: str, groups: int, top_groups: int, bias: Tensor | None
) -> None:
    """Groups divide the experts, and those kept hold at least top_k."""
    name = "route_experts"
    require(logits.dim() == 2, name, "logits must be [tokens, experts], got {}", logits)
    experts = logits.shape[1]
    require(scoring in ("softmax", "sigmoid"), name, "scoring must be softmax or sigmoid, got {!r}", scoring)
    require(bias is None or tuple(bias.shape) == (experts,), name, "bias must have {} entries", experts)
    require(
        1 <= top_groups <= groups and experts % groups == 0 and 1 <= top_k <= experts // groups * top_groups,
        name,
        "cannot take {} of {} experts in {} of {} groups",
        top_k,
        experts,
        top_groups,
        groups,
    )


def check_fused_experts(
    x: Tensor, gate_up: Sequence[PackedWeight], down: Sequence[PackedWeight], ids: Tensor, weights: Tensor
) -> None:
    """As many gate_up as down weights, and ids within them."""
    name = "fused_experts"
    require(len(gate_up) == len(down), name, "{} gate_up and {} down weights must be as many", len(gate_up), len(down))
    require(
        x.dim() == ids.dim() == 2 and ids.shape == weights.shape and ids.shape[0] == x.shape[0],
        name,
        "x {}, ids {} and weights {} do not fit",
        x,
        ids,
        weights,
    )
    require(
        not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < len(gate_up)),
        name,
        "ids must be in [0, {})",
        len(gate_up),
    )


def check_sample(logits: Tensor, params: SampleParams) -> None:
    """Every per-row tensor has one entry a row, every mask row covers the vocabulary."""
    require(logits.dim() == 2 and logits.shape[1] > 0, "sample", "logits must be [rows, vocab], got {}", logits)
    require(logits.is_floating_point(), "sample", "logits must be floating point, got {}", logits.dtype)
    rows, vocab = logits.shape
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seeds",
        "positions",
        "repetition",
        "presence",
        "frequency",
    ):
        value: Any = getattr(params, name)
        require(
            value is None or tuple(value.shape) == (rows,),
            "sample",
            "{} must have one entry for each of {} rows",
            name,
            rows,
        )
    words = math.ceil(vocab / 32)
    require(
        params.mask is None or tuple(params.mask.shape) == (rows, words), "sample", "mask must be [{}, {}]", rows, words
    )
    require(params.num_logprobs <= vocab, "sample", "num_logprobs must be at most {}", vocab)
    for rows_name, ids_name, other in (
        ("bias_rows", "bias_ids", "bias_values"),
        ("penalty_rows", "penalty_ids", "output_counts"),
    ):
        row_ids, ids, values = (getattr(params, name) for name in (rows_name, ids_name, other))
        given = [tensor for tensor in (row_ids, ids, values) if tensor is not None]
        require(
            len(given) in (0, 3) and len({tuple(tensor.shape) for tensor in given}) <= 1,
            "sample",
            "{}, {} and {} come together and are equally long",
            rows_name,
            ids_name,
            other,
        )
        if given and ids.numel():
            require(
                int(row_ids.min()) >= 0
                and int(row_ids.max()) < rows
                and int(ids.min()) >= 0
                and int(ids.max()) < vocab,
                "sample",
                "{} must be in [0, {}) and {} in [0, {})",
                rows_name,
                rows,
                ids_name,
                vocab,
            )


def check_segments(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[int]) -> None:
    """One shape but for v's last dimension, and segment lengths that sum to tokens."""
    check_activations("dense_attention", q, k, v)
    require(
        q.dim() == 3 and q.shape == k.shape and q.shape == v.shape,
        "dense_attention",
        "q {}, k {} and v {} must be [tokens, heads, head_dim], all of one shape",
        q,
        k,
        v,
    )
    require(
        sum(segments) == q.shape[0] and all(length >= 0 for length in segments),
        "dense_attention",
        "segments sum to {}, not to {} tokens",
        sum(segments),
        q.shape[0],
    )
