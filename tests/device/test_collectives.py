"""Collectives between ranks on one host and on several, which are threads of this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import combinations

import pytest
import torch
from torch import Tensor

from device.collectives.interface import Hosts
from device.collectives.shared_memory import SharedMemoryCommunicator

BYTES = 1 << 16  # little, so that most of what is exchanged goes piece by piece
LAYOUTS = [[2], [1, 1], [4], [2, 2], [1, 3], [1, 1, 1, 1], [2, 1, 1]]


class Group:
    """Ranks on hosts that are connected in this process."""

    def __init__(self, counts: list[int], undo: ExitStack) -> None:
        sockets: list[dict[int, int]] = [{} for _ in counts]
        for left, right in combinations(range(len(counts)), 2):
            for host, other, end in zip((left, right), (right, left), socket.socketpair(), strict=True):
                end.setblocking(False)
                undo.callback(end.close)
                sockets[host][other] = end.fileno()
        self.size = sum(counts)
        self.ranks = []
        for host, count in enumerate(counts):
            memory = os.memfd_create("test")
            undo.callback(os.close, memory)
            os.truncate(memory, BYTES)
            for local in range(count):
                hosts = Hosts(counts, {} if local else sockets[host])
                self.ranks.append(SharedMemoryCommunicator(memory, len(self.ranks), self.size, hosts))
        self._pool = undo.enter_context(ThreadPoolExecutor(self.size))

    def run(self, work: Callable[[SharedMemoryCommunicator], Tensor]) -> list[Tensor]:
        """What the ranks give, each in a thread."""
        return list(self._pool.map(work, self.ranks, timeout=60))


@pytest.fixture(params=LAYOUTS, ids=lambda counts: "+".join(map(str, counts)))
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with ExitStack() as undo:
        yield Group(request.param, undo)


def values(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_sums_are_those_of_the_ranks_in_order(group: Group, dtype: torch.dtype, rows: int) -> None:
    """The bits of a sum in float32, rounded once, wherever the ranks are."""
    expected = sum((values(rank, rows, 96, dtype=dtype).float() for rank in range(group.size)), torch.zeros(rows, 96))
    for _ in range(3):
        for result in group.run(lambda rank: rank.all_reduce(values(rank.rank, rows, 96, dtype=dtype))):
            assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("shape", [(1, 5), (40, 33), (2, 30000)])
def test_gathered_lie_side_by_side(group: Group, shape: tuple[int, int]) -> None:
    expected = torch.cat([values(rank, *shape) for rank in range(group.size)], -1)
    for result in group.run(lambda rank: rank.all_gather(values(rank.rank, *shape))):
        assert torch.equal(result, expected)


def test_broadcasts_run_ahead_of_those_who_read_them(group: Group) -> None:
    """A source goes on before anyone has begun to read, here within one thread."""

    def one_after_the_other(rank: SharedMemoryCommunicator) -> Tensor:
        if rank.rank:
            return torch.empty(0)
        return torch.stack(
            [
                torch.cat([each.broadcast(values(10 * number + each.rank, 300)) for number in range(4)])
                for each in group.ranks
            ]
        )

    sent = torch.cat([values(10 * number, 300) for number in range(4)])
    assert torch.equal(group.run(one_after_the_other)[0], sent.expand(group.size, -1))


def test_broadcasts_of_many_sizes_and_sources(group: Group) -> None:
    """Most of them are more than there is room for."""

    def work(rank: SharedMemoryCommunicator) -> Tensor:
        got = []
        for number in range(40):
            source = number % group.size if number > 20 else 0
            sent = values(100 * number + rank.rank, 1 + 500 * (number % 7))
            got.append(rank.broadcast(sent, source))
        return torch.cat([*got, rank.all_reduce(values(rank.rank, 9))])

    results = group.run(work)
    assert torch.equal(results[0][:1], values(0, 1))
    for result in results[1:]:
        assert torch.equal(result, results[0])
