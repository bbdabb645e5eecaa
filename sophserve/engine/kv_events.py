"""What enters and leaves the prefix cache, in the form of vLLM's KV events (vllm.distributed.kv_events, from 0.23 on):
so that a router can know whose cache has which beginning."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from sophserve.engine.block_pool import BlockKey
from sophserve.engine.request import Request

# Where the blocks are: vLLM's word for a device's own memory.
_MEDIUM = "GPU"

BlockHash = int
"""The last 64 bits of a block's key, as vLLM publishes its hashes."""


ExtraKeys = tuple[tuple[str, int] | str, ...]


class _Event(msgspec.Struct, omit_defaults=True, tag=True, gc=False):
    """A map whose `type` is the class's name."""


class BlockStored(_Event):
    """Blocks in a row that can be found from now on, and the tokens in them.

    extra_keys: of each block what its keys and values depend on besides: images as (digest, offset), and for the first
    block of a prompt with a salt or an adapter the digest of these.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[ExtraKeys | None] | None = None


class BlockRemoved(_Event):
    """Blocks that were evicted."""

    block_hashes: list[BlockHash]
    medium: str | None


class AllBlocksCleared(_Event):
    """The cache is empty."""


class KVEventBatch(msgspec.Struct, array_like=True, gc=False):
    """What happened in a step; ts is time.time()."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int = 0


class KvEvents:
    """Gathers events until they are published, all of a step together."""

    def __init__(self, publish: Callable[[KVEventBatch], None]) -> None:
        self._publish = publish
        self._events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []

    def stored(self, request: Request, indexes: Iterable[int], size: int) -> None:
        """These blocks of a request, of `size` tokens each, can be found from now on. Indexes ascend."""
        for run in _runs(indexes):
            keys = request.keys(size)
            first, tokens = run[0], request.token_ids()[run[0] * size : (run[-1] + 1) * size]
            self._events.append(
                BlockStored(
                    block_hashes=[hash_of(keys[index]) for index in run],
                    parent_block_hash=hash_of(keys[first - 1]) if first else None,
                    token_ids=tokens,
                    block_size=size,
                    lora_id=None,
                    medium=_MEDIUM,
                    lora_name=None,
                    extra_keys=[_extra_keys(request, index * size, (index + 1) * size) for index in run],
                )
            )

    def removed(self, key: BlockKey) -> None:
        """A block was evicted."""
        if self._events and isinstance(last := self._events[-1], BlockRemoved):
            last.block_hashes.append(hash_of(key))
        else:
            self._events.append(BlockRemoved([hash_of(key)], _MEDIUM))

    def cleared(self) -> None:
        """Nothing can be found any more."""
        self._events = [AllBlocksCleared()]

    def flush(self) -> None:
        """Publish what there is."""
        if self._events:
            events, self._events = self._events, []
            self._publish(KVEventBatch(time.time(), events))


def hash_of(key: BlockKey) -> BlockHash:
    """What is published of a key."""
    (value,) = struct.unpack(">Q", key[-8:])
    return int(value)


def _extra_keys(request: Request, start: int, end: int) -> ExtraKeys | None:
    items = [item for item in request.items if item.start < end and item.end > start]
    found: ExtraKeys = tuple((item.digest.hex(), item.start - start) for item in items)
    if start == 0 and request.root_key:
        found += (request.root_key.hex(),)
    return found or None


def _runs(indexes: Iterable[int]) -> Iterator[list[int]]:
    """Numbers that ascend, cut where one is left out."""
    run: list[int] = []
    for index in indexes:
        if run and index != run[-1] + 1:
            yield run
            run = []
        run.append(index)
    if run:
        yield run
