"""Muon for the matrices of the layers, AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MUON_RATE = 0.02
ADAM_RATE = 0.004


class Muon:
    """Momentum whose steps are made orthogonal (https://kellerjordan.github.io/posts/muon/).

    torch.optim.Muon does the same in bfloat16, which takes 40 times as long on processors without it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95) -> None:
        self._momentum = momentum
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self._groups[parameter.shape].append(parameter)
        self._buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step against the gradients."""
        for shape, group in self._groups.items():
            gradients = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            buffer = self._buffers[shape].lerp_(gradients, 1 - self._momentum)
            updates = orthogonal(gradients.lerp(buffer, self._momentum)) * max(1, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(group, updates, strict=True):
                parameter.sub_(update, alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrices to `[count, rows, columns]`, by Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """Both, with one schedule."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "layers" in name]
        others = [parameter for name, parameter in named if parameter.ndim != 2 or "layers" not in name]
        self._model = model
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, factor: float) -> None:
        """One step at a part of the full rates; forgets the gradients."""
        self._adam.param_groups[0]["lr"] = factor * ADAM_RATE
        self._muon.step(factor * MUON_RATE)
        self._adam.step()
        self._model.zero_grad(set_to_none=True)
