"""A model split between ranks computes what it computes whole. The ranks are threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor


class Group:
    """What the ranks of one group hand to each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots: list[Tensor] = [torch.empty(0)] * size


class ThreadRank:
    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.world_size = group, rank, len(group.slots)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.group.slots[self.rank] = x
        self.group.barrier.wait()
        everyone = list(self.group.slots)
        self.group.barrier.wait()
        return everyone

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x), dim=-1)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        return self._exchange(x)[source]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "vocab_size": 511}),
        (
            "qwen2",
            {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
        ("qwen2_moe", {"num_hidden_layers": 3, "mlp_only_layers": [1]}),
        ("qwen3_moe", {}),
        ("deepseek_v2", {"q_lora_rank": None}),
        ("deepseek_v3", {"attention_bias": True, "vocab_size": 511}),
    ],
)
def test_ranks_compute_the_whole(kind, overrides, ranks, make_checkpoint, open_model):
    directory = make_checkpoint(kind, **overrides)
    ids = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    whole = open_model(directory).logprobs(ids, 25)
    group = Group(ranks)

    def run(rank: int) -> Tensor:
        return open_model(directory, communicator=ThreadRank(group, rank)).logprobs(ids, 25)

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(run, range(ranks)))
    for result in results:
        assert torch.equal(result, results[0])
        assert (result - whole).abs().max() < 2e-4
