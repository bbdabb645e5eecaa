"""This rank's place among the stages that the layers are split over (pipeline parallelism,
https://arxiv.org/abs/1811.06965): what is done within its stage, between two of them, and by all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from device.collectives.interface import Communicator, Hosts, SingleRank
from device.interface import Device
from sophserve.errors import ConfigError
from sophserve.launch import sizes_in_words
from sophserve.link.messages import LoadModel
from sophserve.model.decoder import Passed


class Stages:
    """A rank's end of its groups. collectives: by group (LoadModel.groups) the descriptor of what its ranks here share.
    hosts: how groups are spread over several ones.

    number, count: its stage, of how many. ranks: those of its stage, which share the layers. everyone: all ranks.
    answers: whether it is the one that guesses, samples and gives the results.
    """

    def __init__(
        self, load: LoadModel, device: Device, collectives: Sequence[int], hosts: Mapping[int, Hosts] | None = None
    ) -> None:
        self.number, self.count = load.stage, load.config.pipeline_parallel_size
        if self.count > 1 and not device.uses_host_memory:
            raise ConfigError(
                f"--pipeline-parallel-size is {self.count}, but device {device.name} cannot pass on what a stage "
                "computed; split the model by --tensor-parallel-size alone"
            )
        groups, hosts = load.groups, hosts or {}

        def join(group: int) -> Communicator:
            place, size = groups[group].index(load.rank), len(groups[group])
            if size == 1:
                return SingleRank()
            try:
                return device.communicator(collectives[group], place, size, hosts.get(group))
            except RuntimeError as error:
                raise ConfigError(f"{sizes_in_words(load.config)}, but {error}") from error

        self.ranks = join(self.number)
        self.everyone = self.ranks if self.count == 1 else join(len(groups) - 1)
        self.answers = load.rank == load.answering
        self._answering = load.answering
        edges = range(self.count, 2 * self.count - 1)
        self._before = join(edges[self.number - 1]) if self.number > 0 else None
        self._behind = join(edges[self.number]) if self.number + 1 < self.count and self.ranks.rank == 0 else None

    def tell(self, x: Tensor) -> Tensor:
        """The answering rank's x, on the host, for all."""
        return self.everyone.broadcast(x, self._answering)

    def receive(self, rows: int, hidden_size: int, dtype: torch.dtype) -> Passed | None:
        """What the stage before this one made of so many rows; None for the first."""
        if self._before is None:
            return None
        x, residual = self._before.broadcast(torch.empty(2, rows, hidden_size, dtype=dtype))
        return x, residual

    def send(self, passed: Passed) -> None:
        """Give the next stage what this one made of its rows, which every rank of this one has."""
        if self._behind is not None:
            self._behind.broadcast(torch.stack(passed))
