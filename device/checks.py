"""Shape checks that every device makes before it computes. All raise ValueError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from device.interface import AttentionMeta, KVCache, PackedWeight, Rope, SampleParams

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def require(ok: bool, operator: str, message: str) -> None:
    """Raise ValueError with the operator's name unless ok."""
    if not ok:
        raise ValueError(f"{operator}: {message}")


def check_activations(operator: str, *tensors: Tensor) -> None:
    """All of one activation dtype."""
    dtypes = {tensor.dtype for tensor in tensors}
    require(len(dtypes) == 1, operator, f"one dtype expected, got {sorted(map(str, dtypes))}")
    require(dtypes <= set(ACTIVATION_DTYPES), operator, f"{tensors[0].dtype} is not an activation dtype")


def check_embedding(ids: Tensor, table: Tensor) -> None:
    """ids `[tokens]` within table `[vocab, hidden]`."""
    require(ids.dim() == 1 and table.dim() == 2, "embedding", f"got ids {_shape(ids)}, table {_shape(table)}")
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        require(low >= 0 and high < table.shape[0], "embedding", f"ids must be in [0, {table.shape[0]})")


def check_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """x `[..., hidden]`, weight `[hidden]`, residual of x's shape."""
    check_activations("rms_norm", x, *([] if residual is None else [residual]))
    require(
        x.dim() >= 1 and tuple(weight.shape) == tuple(x.shape[-1:]),
        "rms_norm",
        f"x {_shape(x)} does not fit weight {_shape(weight)}",
    )
    if residual is not None:
        require(
            residual.shape == x.shape,
            "rms_norm",
            f"residual {_shape(residual)} does not have x's shape {_shape(x)}",
        )


def check_linear(operator: str, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> None:
    """x `[tokens, in_features]`, bias `[out_features]`."""
    check_activations(operator, x)
    require(
        x.dim() == 2 and x.shape[1] == weight.in_features,
        operator,
        f"x {_shape(x)} does not fit a weight of {weight.out_features} x {weight.in_features}",
    )
    if bias is not None:
        require(
            tuple(bias.shape) == (weight.out_features,),
            operator,
            f"bias {_shape(bias)} does not fit {weight.out_features} outputs",
        )


def check_gated_mlp(x: Tensor, gate_up: PackedWeight, down: PackedWeight, activation: str) -> None:
    """gate_up twice as tall as down is wide, and a known activation."""
    require(
        activation in ACTIVATIONS,
        "gated_mlp",
        f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}",
    )
    check_linear("gated_mlp", x, gate_up)
    require(
        gate_up.out_features == 2 * down.in_features,
        "gated_mlp",
        f"gate_up has {gate_up.out_features} outputs, down needs twice {down.in_features}",
    )


def check_meta(operator: str, tokens: int, kv: KVCache, meta: AttentionMeta, rope: Rope | None) -> None:
    """Lengths sum to tokens, no block or slot lies outside the cache, no position beyond the RoPE tables."""
    blocks, block_size = kv.keys.shape[:2]
    sequences = meta.input_lengths.numel()
    require(
        meta.cached_lengths.numel() == sequences and meta.block_tables.shape[:1] == (sequences,),
        operator,
        f"{sequences} input_lengths, {meta.cached_lengths.numel()} cached_lengths and "
        f"{meta.block_tables.shape[0]} block tables must be as many",
    )
    require(
        int(meta.input_lengths.sum()) == tokens == meta.slot_mapping.numel(),
        operator,
        f"{tokens} tokens do not fit input_lengths, which sum to {int(meta.input_lengths.sum())}, "
        f"or {meta.slot_mapping.numel()} slots",
    )
    if not tokens:
        return
    require(
        int(meta.input_lengths.min()) >= 1 and int(meta.cached_lengths.min()) >= 0,
        operator,
        "every sequence needs at least one new token, and no negative count of cached ones",
    )
    longest = int((meta.input_lengths + meta.cached_lengths).max())
    room = meta.block_tables.shape[1] * block_size
    require(longest <= room, operator, f"a sequence of {longest} tokens does not fit its block table of {room}")
    require(
        rope is None or longest <= rope.cos.shape[0],
        operator,
        f"a sequence of {longest} tokens exceeds the RoPE tables' positions",
    )
    for name, ids, limit in (
        ("block id", meta.block_tables, blocks),
        ("slot", meta.slot_mapping, blocks * block_size),
    ):
        low, high = (int(bound) for bound in torch.aminmax(ids))
        require(low >= 0 and high < limit, operator, f"a {name} lies outside [0, {limit})")


def check_paged_attention(q: Tensor, k: Tensor, v: Tensor, kv: KVCache, rope: Rope | None, window: int | None) -> None:
    """q, k, v, the caches and the RoPE tables fit each other."""
    name = "paged_attention"
    check_activations(name, q, k, v, kv.keys, kv.values)
    require(q.dim() == k.dim() == v.dim() == 3, name, f"got q {_shape(q)}, k {_shape(k)}, v {_shape(v)}")
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
        f"q {_shape(q)}, k {_shape(k)}, v {_shape(v)} do not fit a cache of {_shape(kv.keys)}, {_shape(kv.values)}",
    )
    _check_rope(name, rope, head_dim)
    require(window is None or window >= 1, name, f"window must be at least 1, got {window}")


def check_latent_attention(q: Tensor, latent: Tensor, k_rope: Tensor, kv: KVCache, kv_up: Tensor, rope: Rope) -> None:
    """q, the latent, the caches, kv_up and the RoPE tables fit each other."""
    name = "paged_latent_attention"
    check_activations(name, q, latent, k_rope, kv.keys, kv.values, kv_up)
    require(
        q.dim() == kv_up.dim() == 3 and latent.dim() == k_rope.dim() == 2 and kv.keys.dim() == 4,
        name,
        f"got q {_shape(q)}, latent {_shape(latent)}, k_rope {_shape(k_rope)}, kv_up {_shape(kv_up)}",
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
        f"q {_shape(q)}, latent {_shape(latent)}, k_rope {_shape(k_rope)}, kv_up {_shape(kv_up)} do not "
        f"fit each other or a cache of {_shape(kv.keys)}, {_shape(kv.values)}",
    )
    _check_rope(name, rope, k_rope.shape[1])


def _check_rope(operator: str, rope: Rope | None, head_dim: int) -> None:
    require(
        rope is None
        or (rope.cos.shape == rope.sin.shape and rope.cos.dim() == 2 and 2 * rope.cos.shape[1] <= head_dim),
        operator,
        f"RoPE tables do not fit {head_dim} channels",
    )


def check_route_experts(
    logits: Tensor, top_k: int, scoring: str, groups: int, top_groups: int, bias: Tensor | None
) -> None:
    """Groups divide the experts, and those kept hold at least top_k."""
    name = "route_experts"
    require(logits.dim() == 2, name, f"logits must be [tokens, experts], got {_shape(logits)}")
    experts = logits.shape[1]
    require(scoring in ("softmax", "sigmoid"), name, f"scoring must be softmax or sigmoid, got {scoring!r}")
    require(bias is None or tuple(bias.shape) == (experts,), name, f"bias must have {experts} entries")
    require(
        1 <= top_groups <= groups and experts % groups == 0 and 1 <= top_k <= experts // groups * top_groups,
        name,
        f"cannot take {top_k} of {experts} experts in {top_groups} of {groups} groups",
    )


def check_fused_experts(
    x: Tensor, gate_up: Sequence[PackedWeight], down: Sequence[PackedWeight], ids: Tensor, weights: Tensor
) -> None:
    """As many gate_up as down weights, and ids within them."""
    name = "fused_experts"
    require(
        len(gate_up) == len(down),
        name,
        f"{len(gate_up)} gate_up and {len(down)} down weights must be as many",
    )
    require(
        x.dim() == ids.dim() == 2 and ids.shape == weights.shape and ids.shape[0] == x.shape[0],
        name,
        f"x {_shape(x)}, ids {_shape(ids)} and weights {_shape(weights)} do not fit",
    )
    require(
        not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < len(gate_up)),
        name,
        f"ids must be in [0, {len(gate_up)})",
    )


def check_sample(logits: Tensor, params: SampleParams) -> None:
    """Every per-row tensor has one entry a row, every mask row covers the vocabulary."""
    require(
        logits.dim() == 2 and logits.shape[1] > 0,
        "sample",
        f"logits must be [rows, vocab], got {_shape(logits)}",
    )
    require(logits.is_floating_point(), "sample", f"logits must be floating point, got {logits.dtype}")
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
            f"{name} must have one entry for each of {rows} rows",
        )
    words = math.ceil(vocab / 32)
    require(
        params.mask is None or tuple(params.mask.shape) == (rows, words),
        "sample",
        f"mask must be [{rows}, {words}]",
    )
    require(params.num_logprobs <= vocab, "sample", f"num_logprobs must be at most {vocab}")
    for rows_name, ids_name, other in (
        ("bias_rows", "bias_ids", "bias_values"),
        ("penalty_rows", "penalty_ids", "output_counts"),
    ):
        row_ids, ids, values = (getattr(params, name) for name in (rows_name, ids_name, other))
        given = [tensor for tensor in (row_ids, ids, values) if tensor is not None]
        require(
            len(given) in (0, 3) and len({tuple(tensor.shape) for tensor in given}) <= 1,
            "sample",
            f"{rows_name}, {ids_name} and {other} come together and are equally long",
        )
        if given and ids.numel():
            require(
                int(row_ids.min()) >= 0
                and int(row_ids.max()) < rows
                and int(ids.min()) >= 0
                and int(ids.max()) < vocab,
                "sample",
                f"{rows_name} must be in [0, {rows}) and {ids_name} in [0, {vocab})",
            )


def check_segments(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[int]) -> None:
    """One shape but for v's last dimension, and segment lengths that sum to tokens."""
    check_activations("dense_attention", q, k, v)
    require(
        q.dim() == 3 and q.shape == k.shape and q.shape == v.shape,
        "dense_attention",
        f"q {_shape(q)}, k {_shape(k)} and v {_shape(v)} must be [tokens, heads, head_dim], all of one shape",
    )
    require(
        sum(segments) == q.shape[0] and all(length >= 0 for length in segments),
        "dense_attention",
        f"segments sum to {sum(segments)}, not to {q.shape[0]} tokens",
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
