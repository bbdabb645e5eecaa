from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from device.cmodel.device import CmodelDevice
from device.collectives.interface import Communicator, SingleRank
from device.interface import CanonicalWeight, DenseWeight, Role
from sophserve.model.context import ModelContext


@dataclass
class PlainWeight:
    """A weight that a test can look into."""

    values: Tensor

    def __post_init__(self) -> None:
        self.out_features, self.in_features = self.values.shape
        self.nbytes = self.values.nbytes


class PlainDevice(CmodelDevice):
    """Packs nothing, to see what the loader hands over."""

    def pack(self, weight: CanonicalWeight, role: Role = "other") -> PlainWeight:
        assert isinstance(weight, DenseWeight)
        return PlainWeight(weight.values)


@pytest.fixture
def make_context() -> Callable[..., ModelContext]:
    def make(communicator: Communicator | None = None, dtype: torch.dtype = torch.float32) -> ModelContext:
        return ModelContext(PlainDevice(), communicator or SingleRank(), dtype, max_positions=128)

    return make
