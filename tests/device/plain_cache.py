"""The KV cache of the cmodel as the definition of attention reads it."""

from __future__ import annotations

from device.cmodel.kv_cache import PairedKVCache
from device.interface import KVCache


def plain(kv: KVCache) -> KVCache:
    """A copy in the order of the shapes."""
    if not isinstance(kv, PairedKVCache):
        return KVCache(kv.keys.contiguous(), kv.values.contiguous())
    blocks, block_size, heads, dim = kv.keys.shape
    keys = kv.keys.reshape(blocks, heads, dim // 2, block_size, 2).permute(0, 3, 1, 2, 4).flatten(-2)
    values = kv.values.reshape(blocks, heads, block_size // 2, dim, 2).permute(0, 2, 4, 1, 3).flatten(1, 2)
    return KVCache(keys.contiguous(), values.contiguous())
