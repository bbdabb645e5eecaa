"""The cmodel's operators."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from device import checks
from device.interface import Activation, PackedWeight
from device.reference import ReferenceOps, activate


class TorchWeight:
    """A dense weight as torch's own linear reads it, `[out_features, in_features]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class TorchOps(ReferenceOps):
    """What a host without the native library runs on: the reference, with products by torch's own kernels."""

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`."""
        assert isinstance(weight, TorchWeight)
        checks.check_linear("linear", x, weight, bias)
        return F.linear(x, weight.values, bias)

    def gated_mlp(
        self, x: Tensor, gate_up: PackedWeight, down: PackedWeight, activation: Activation
    ) -> Tensor:
        """`down(activation(gate) * up)`."""
        checks.check_gated_mlp(x, gate_up, down, activation)
        gate, up = self.linear(x, gate_up).float().chunk(2, dim=-1)
        return self.linear((activate(gate, activation) * up).to(x.dtype), down)
