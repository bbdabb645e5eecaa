"""What a group of ranks can do together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Hosts:
    """How a group of ranks is spread over machines. counts: the ranks of each host, in order. sockets: from this host's
    first rank to that of each other host, connected, by the other's number; other ranks have none."""

    counts: Sequence[int]
    sockets: Mapping[int, int] = field(default_factory=dict)

    @property
    def firsts(self) -> list[int]:
        """The first rank of each host."""
        return list(accumulate(self.counts, initial=0))[:-1]


class Communicator(Protocol):
    """Collectives between the ranks of one tensor-parallel group, which make the same calls in the same order. All but
    all_gather may work in place, and then return x."""

    rank: int
    world_size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over ranks, the same bits on every rank."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x side by side along the last dimension, in rank order."""

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The source rank's x. The source goes on before the others have it, as far as there is room for what they have
        not taken yet: several steps' tokens, and at least some of one step's activations."""


class SingleRank:
    """The communicator of a world of one."""

    rank = 0
    world_size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        return x
