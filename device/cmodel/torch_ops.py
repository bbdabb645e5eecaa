"""The cmodel's operators where there is no native library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from device import shape_checks as checks
from device.cmodel.weights import TorchWeight
from device.interface import Activation, PackedWeight
from device.reference import ReferenceOps, activate


class TorchOps(ReferenceOps):
    """What a host without the native library runs on: the reference, with products by torch's own kernels."""

    def embedding(
        self,
        ids: Tensor,
        table: Tensor | PackedWeight,
        first: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return super().embedding(ids, table.values if isinstance(table, TorchWeight) else table, first, dtype)

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        assert isinstance(weight, TorchWeight)
        checks.check_linear("linear", x, weight, bias, activation)
        y = F.linear(x, weight.values, bias)
        return y if activation is None else activate(y.float(), activation).to(x.dtype)

    def gated_mlp(
        self,
        x: Tensor,
        gate_up: PackedWeight,
        down: PackedWeight,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        checks.check_gated_mlp(x, gate_up, down, activation, gate_up_bias, down_bias)
        gate, up = self.linear(x, gate_up, gate_up_bias).float().chunk(2, dim=-1)
        return self.linear((activate(gate, activation) * up).to(x.dtype), down, down_bias)
