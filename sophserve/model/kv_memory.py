"""How much memory the KV cache takes."""

from __future__ import annotations

from sophserve.config import EngineConfig
from sophserve.model.layers import CachedModule
from sophserve.model.module import Module

KV_SHARE = 0.6
"""The part of the device's free memory, after loading, that the KV cache takes when no size is given."""


def cached_layers(model: Module) -> list[CachedModule]:
    """The layers of a model, or of a part of it, that need a KV cache."""
    return [module for module in model.modules() if isinstance(module, CachedModule)]


def token_bytes(model: Module) -> int:
    """Bytes that one token takes in the caches of all layers of this rank."""
    return sum(layer.cache.token_bytes for layer in cached_layers(model))


def block_count(budget: int, block_bytes: int, config: EngineConfig, max_model_len: int) -> int:
    """How many KV blocks to make: what fits in the budget, at most what all sequences could ever use."""
    return min(budget // block_bytes, -(-max_model_len // config.block_size) * config.max_num_seqs)
