"""auto-round (https://arxiv.org/abs/2309.05516) in its own format: the layout of GPTQ or of AWQ under one quant_method,
of which `packing_format` says which one. Symmetric layers are written as GPTQ's, others as AWQ's, neither with an order
of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from model_plugins.quantization.awq import AWQ
from model_plugins.quantization.gptq import GPTQ
from sophserve.errors import CheckpointError
from sophserve.model.quantization import Scheme, WeightFormat, read_settings
from sophserve.model.weights import StoredTensor
from sophserve.plugins import Register, hookimpl


class AutoRoundConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed here. extra_config: other settings of single layers."""

    packing_format: str = ""
    data_type: str = "int"
    act_bits: int = 16
    sym: bool = True
    extra_config: dict[str, dict[str, Any]] = {}


class AutoRound(Scheme):
    """Layers with a qweight are quantized, the others are not."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = read_settings(AutoRoundConfig, config)
        packing = settings.packing_format.lower()
        if settings.data_type != "int" or settings.act_bits < 16:
            raise CheckpointError(
                f"auto-round is supported with data_type int and plain activations, not {settings.data_type} and "
                f"{settings.act_bits} bits; quantize weights only"
            )
        extra = settings.extra_config.items()
        mixed = [name for name, changes in extra if changes.get("sym", settings.sym) != settings.sym]
        if mixed:
            raise CheckpointError(
                f"auto-round's extra_config has another sym for {mixed[0]}; quantize all layers alike"
            )
        if packing == "auto_round:auto_gptq":
            self._layout: Scheme = GPTQ({**config, "checkpoint_format": "gptq"})
        elif packing == "auto_round:auto_awq":
            self._layout = AWQ(config)
        else:
            raise CheckpointError(
                f"auto-round's packing_format is {settings.packing_format!r}; supported: auto_round:auto_gptq, "
                "auto_round:auto_awq"
            )

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        return self._layout.weight_format(name, stored)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """As its layout has it, without an order of inputs."""
        tensors = self._layout.expected(name, shape, dtype)
        return tensors and {key: tensor for key, tensor in tensors.items() if key != "g_idx"}


@hookimpl
def register_quantizations(register: Register) -> None:
    register("auto-round", AutoRound)
