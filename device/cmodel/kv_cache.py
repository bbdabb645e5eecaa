"""The KV cache as the native kernels lay it out."""

from __future__ import annotations

import torch

from device.interface import KVCache


def native_cache(
    blocks: int, block_size: int, kv_heads: int, head_dims: tuple[int, int], dtype: torch.dtype
) -> KVCache:
    """A cache whose keys lie `[blocks, kv_heads, head_dim, block_size]` in memory, so that a kernel reads one channel
    of many positions at once, and whose values lie `[blocks, kv_heads, block_size, head_dim]`."""
    keys = torch.empty(blocks, kv_heads, head_dims[0], block_size, dtype=dtype)
    values = torch.empty(blocks, kv_heads, block_size, head_dims[1], dtype=dtype)
    return KVCache(keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3))


def is_native_cache(kv: KVCache) -> bool:
    """Whether a cache lies in memory as `native_cache` makes it."""
    _, block_size, heads, key_dim = kv.keys.shape
    value_dim = kv.values.shape[3]
    return kv.keys.stride() == (heads * key_dim * block_size, 1, key_dim * block_size, block_size) and (
        kv.values.stride() == (heads * block_size * value_dim, value_dim, block_size * value_dim, 1)
    )
