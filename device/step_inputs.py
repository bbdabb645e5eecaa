"""What the operators of a step share: where its tokens belong, how they are rotated, the caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class _Gathers(Protocol):
    """Of the operators of a device, the one that rotations need."""

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) as tables over positions.

    cos, sin: float32 `[positions, rotary_dim / 2]`, any attention factor already multiplied in. The first rotary_dim
    channels of a head are rotated. Channel i pairs with i + rotary_dim / 2, or, when interleaved, 2i with 2i + 1.
    sections: how many of the rotary_dim / 2 angles, in order, go by each axis of a position (M-RoPE,
    https://arxiv.org/abs/2409.12191); empty where positions have one.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    sections: tuple[int, ...] = ()


class Rotation(NamedTuple):
    """The rows of a Rope for the tokens of a batch: cos, sin float32 `[tokens, rotary_dim / 2]`."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class AttentionMeta:
    """Where the rows of one flat token batch belong. All tensors are int32.

    Sequences stand one after the other, those with one new token (decodes) before those with more (prefills).

    input_lengths: `[sequences]`, new tokens of each; they sum to tokens.
    cached_lengths: `[sequences]`, tokens of each whose keys and values are in the cache already.
    block_tables: `[sequences, max_blocks]`, block ids covering cached and new tokens; unused entries are 0.
    slot_mapping: `[tokens]`, `block * block_size + offset` of each new token.
    max_length: the largest input + cached length.
    rotations: what was gathered of the ropes that the batch was prepared for.
    """

    input_lengths: Tensor
    cached_lengths: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    max_length: int
    rotations: Mapping[Rope, Rotation] = field(default_factory=dict)

    @cached_property
    def positions(self) -> Tensor:
        """int32 `[tokens]`: each new token's position in its sequence."""
        lengths = self.input_lengths.long()
        starts = lengths.cumsum(0) - lengths
        skipped = (self.cached_lengths - starts).repeat_interleave(lengths)
        return (torch.arange(len(skipped), device=skipped.device) + skipped).int()

    def rotation(self, rope: Rope, ops: _Gathers) -> Rotation:
        """How each token is rotated. It is gathered now if the batch was not prepared for it."""
        found = self.rotations.get(rope)
        return found or Rotation(*(self._turns(rope, table, ops) for table in (rope.cos, rope.sin)))

    def _turns(self, rope: Rope, table: Tensor, ops: _Gathers) -> Tensor:
        """The rows of a rope's table for the tokens."""
        return ops.embedding(self.positions, table)


class GivenEmbeddings(NamedTuple):
    """What stands for some tokens of a batch, such as those of an image: int64 `[given]`, which ones, and `[given,
    hidden]`."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class StepInputs(AttentionMeta):
    """What all layers of a step share: on the host as a worker lays it out, in the device's own form once prepared.

    ids, positions: int32 `[tokens]`. axis_positions: int32 `[axes, tokens]`, for ropes with sections, where a token's
    position is not the same on each axis. given: embeddings in place of those that ids have.
    """

    ids: Tensor = field(kw_only=True)
    positions: Tensor = field(kw_only=True)
    axis_positions: Tensor | None = field(default=None, kw_only=True)
    given: GivenEmbeddings | None = field(default=None, kw_only=True)

    def _turns(self, rope: Rope, table: Tensor, ops: _Gathers) -> Tensor:
        if not rope.sections or self.axis_positions is None:
            return super()._turns(rope, table, ops)
        by_axis = (ops.embedding(positions, table) for positions in self.axis_positions)
        parts = zip(by_axis, accumulate(rope.sections, initial=0), rope.sections, strict=False)
        return torch.cat([turns[:, first : first + count] for turns, first, count in parts], 1)


@dataclass(frozen=True)
class CacheSpec:
    """What one layer keeps of each token, on this rank: a key and a value in each of `heads` heads.

    head_dims: channels of a key and of a value. replicated: other ranks keep the very same. latent: of latent
    attention, for whose one head they are those of the latent and of the rotated key beside it.
    """

    heads: int
    head_dims: tuple[int, int]
    dtype: torch.dtype
    replicated: bool = False
    latent: bool = False

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes."""
        return self.heads * sum(self.head_dims) * self.dtype.itemsize


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer in blocks. To the outside `[blocks, block_size, kv_heads, head_dim]`; a device may
    lay them out otherwise. Latent attention keeps `[blocks, block_size, 1, latent]` and `[..., rope_dim]` here."""

    keys: Tensor
    values: Tensor
