"""The KV cache as the native kernels lay it out."""

from __future__ import annotations

import torch

from device.interface import CacheSpec, KVCache

LANES = 16
"""Blocks and heads of a paired cache are whole vectors of so many: see native/kernels/attention_pairs.h."""


class PairedKVCache(KVCache):
    """A bfloat16 cache for processors that multiply pairs of them: keys lie in pairs of channels, `[blocks, kv_heads,
    head_dim / 2, block_size, 2]`, values in pairs of positions, `[blocks, kv_heads, block_size / 2, head_dim, 2]`.

    keys and values have the shapes that every cache has, but not the order.
    """


def native_cache(blocks: int, block_size: int, spec: CacheSpec) -> KVCache:
    """A cache whose keys lie `[blocks, kv_heads, head_dim, block_size]` in memory, so that a kernel reads one channel
    of many positions at once, and whose values lie `[blocks, kv_heads, block_size, head_dim]`."""
    key_dim, value_dim = spec.head_dims
    keys = torch.empty(blocks, spec.heads, key_dim, block_size, dtype=spec.dtype)
    values = torch.empty(blocks, spec.heads, block_size, value_dim, dtype=spec.dtype)
    return KVCache(keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3))


def paired_cache(blocks: int, block_size: int, spec: CacheSpec) -> PairedKVCache | None:
    """A paired cache, or None for sizes that the kernels do not take in pairs."""
    key_dim, value_dim = spec.head_dims
    if spec.dtype != torch.bfloat16 or key_dim != value_dim or key_dim % LANES or block_size % LANES:
        return None
    keys, values = (torch.empty(blocks, block_size, spec.heads, dim, dtype=spec.dtype) for dim in spec.head_dims)
    return PairedKVCache(keys, values)


def is_native_cache(kv: KVCache) -> bool:
    """Whether a cache lies in memory as `native_cache` or `paired_cache` makes it."""
    if isinstance(kv, PairedKVCache):
        return kv.keys.is_contiguous() and kv.values.is_contiguous()
    _, block_size, heads, key_dim = kv.keys.shape
    value_dim = kv.values.shape[3]
    return kv.keys.stride() == (heads * key_dim * block_size, 1, key_dim * block_size, block_size) and (
        kv.values.stride() == (heads * block_size * value_dim, value_dim, block_size * value_dim, 1)
    )
