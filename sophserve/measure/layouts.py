"""How a model's layers are cut into stages, and what the ranks of each take."""

from __future__ import annotations

from device.interface import Device
from sophserve.config import EngineConfig
from sophserve.fit import split_layers
from sophserve.measure.footprint import Layout, SmallerModel, Stage
from sophserve.model.decoder import CausalLM
from sophserve.model.kv_memory import KV_SHARE, block_count, token_bytes
from sophserve.model.module import Module


def cut(model: CausalLM, stages: int) -> list[range]:
    """The layers of each stage, by the bytes of a model that is loaded whole."""
    count = len(model.layers)
    if stages == 1:
        return [range(count)]
    first, last = (sum(part.nbytes for part in _beside(model, range(at, at + 1))) for at in (0, count - 1))
    return split_layers([layer.nbytes for layer in model.layers], first, last, stages)


def layout(
    model: CausalLM,
    stages: int,
    device: Device,
    config: EngineConfig,
    max_model_len: int,
    memory: int | None,
    smaller: SmallerModel | None,
) -> Layout:
    """What each stage takes. model: whole, as one of the ranks that share each layer has it. memory: as of
    FootprintRequest. smaller: what guesses, on one rank of the last stage."""
    ranks = model.context.communicator.world_size
    shares = []
    for held in cut(model, stages):
        layers = model.layers[held.start : held.stop]
        parts = [*layers, *_beside(model, held)] if stages > 1 else [model]
        shares.append(Stage(len(held), sum(part.nbytes for part in parts), sum(map(token_bytes, parts))))
    free, shared = memory, 1
    if free is None:
        free, shared = device.memory()[0], ranks * stages if device.uses_host_memory else 1
    whole = ranks * sum(share.weight_bytes for share in shares)
    if smaller:
        shares[-1].weight_bytes += smaller.weight_bytes
        shares[-1].kv_token_bytes += smaller.kv_token_bytes
        whole += smaller.weight_bytes
    budgets, blocks = [], []
    for share in shares:
        left = max(0, free - (whole if shared > 1 else share.weight_bytes))
        budgets.append(config.kv_cache_bytes or int(left * KV_SHARE) // shared)
        count = block_count(budgets[-1], share.kv_token_bytes * config.block_size, config, max_model_len)
        blocks.append(count if budgets[-1] <= left else 0)
    return Layout(ranks, stages, shares, min(budgets), min(blocks))


def _beside(model: CausalLM, held: range) -> list[Module]:
    """What a stage has beside its layers."""
    parts: list[Module] = []
    is_last = held.stop == len(model.layers)
    if held.start == 0 or (is_last and model.mtp):
        parts.append(model.head if model.tied else model.embedding)
    if is_last:
        parts += [model.norm, *([model.mtp] if model.mtp else []), *([] if model.head in parts else [model.head])]
    return parts
