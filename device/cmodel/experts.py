"""The routed experts of a layer in the kernels' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from device.cmodel.kernels import Kernels
from device.cmodel.weights import QuantizedWeight, pack
from device.interface import ExpertsWeight


class ExpertPanels:
    """The gated MLPs of all experts as two weights, in each of which the experts stand one after the other.

    The halves of gate_up, gate and up, begin with a panel of their own, so that one kernel does the gate as well.
    """

    def __init__(self, kernels: Kernels, weight: ExpertsWeight) -> None:
        self.gate_up = pack(kernels, weight.gate_up, halves=2)
        self.down = pack(kernels, weight.down)
        self._describe(len(weight.down))
        found = len(weight.gate_up), self.gate_up.out_features, self.in_features
        if found != (self.experts, 2 * self.intermediate, self.out_features):
            expected = f"{self.experts} of {2 * self.intermediate} x {self.out_features}"
            raise ValueError("experts need {} gate_up weights, not {} of {} x {}".format(expected, *found))

    def _describe(self, experts: int) -> None:
        self.experts, self.intermediate = experts, self.down.in_features
        self.in_features, self.out_features = self.gate_up.in_features, self.down.out_features
        self.nbytes = self.gate_up.nbytes + self.down.nbytes
        self.rounds_rows = any(
            isinstance(each, QuantizedWeight) and each.rounds_rows for each in (self.gate_up, self.down)
        )

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        """What `restore` makes this weight of; None for a dense one."""
        numbers: dict[str, int] = {"experts": self.experts}
        tensors: dict[str, Tensor] = {}
        for name in _PARTS:
            weight = getattr(self, name)
            if not isinstance(weight, QuantizedWeight):
                return None
            of_part = weight.state()
            numbers |= {f"{name}.{key}": value for key, value in of_part[0].items()}
            tensors |= {f"{name}.{key}": value for key, value in of_part[1].items()}
        return numbers, tensors

    @classmethod
    def restore(cls, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> ExpertPanels:
        weight = cls.__new__(cls)
        for name in _PARTS:
            setattr(weight, name, QuantizedWeight.restore(_part(name, numbers), _part(name, tensors)))
        weight._describe(numbers["experts"])
        return weight


_PARTS = ("gate_up", "down")
_Value = TypeVar("_Value")


def _part(name: str, state: Mapping[str, _Value]) -> dict[str, _Value]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items()}
