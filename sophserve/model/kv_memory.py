"""How much memory the KV cache takes."""

from __future__ import annotations

from sophserve.config import EngineConfig
from sophserve.model.decoder import CausalLM
from sophserve.model.layers import PagedAttention

KV_SHARE = 0.6
"""The part of the device's free memory, after loading, that the KV cache takes when no size is given."""


def attention_layers(model: CausalLM) -> list[PagedAttention]:
    """The layers that need a KV cache."""
    return [module for module in model.modules() if isinstance(module, PagedAttention)]


def layer_token_bytes(layer: PagedAttention, model: CausalLM) -> int:
    """Bytes that one token's keys and values take in one layer of this rank."""
    return 2 * layer.kv_heads * layer.head_dim * model.context.dtype.itemsize


def token_bytes(model: CausalLM) -> int:
    """Bytes that one token's keys and values take in all layers of this rank."""
    return sum(layer_token_bytes(layer, model) for layer in attention_layers(model))


def block_count(budget: int, block_bytes: int, config: EngineConfig, max_model_len: int) -> int:
    """How many KV blocks to make: what fits in the budget, at most what all sequences could ever use."""
    return min(budget // block_bytes, -(-max_model_len // config.block_size) * config.max_num_seqs)
