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
from sophserve.model.quantization import Scheme, WeightFormat, matches, read_settings
from sophserve.model.weights import StoredTensor
from sophserve.plugins import Register, hookimpl


class AutoRoundConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed here. extra_config: other settings of single layers, by their
    names or regexes of these; layers of 16 bits are plain."""

    bits: int = 4
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
        self._config, self._settings = config, settings
        mixed = [
            name
            for name, changes in settings.extra_config.items()
            if changes.get("bits", settings.bits) < 16 and changes.get("sym", settings.sym) != settings.sym
        ]
        if mixed:
            raise CheckpointError(
                f"auto-round's extra_config has another sym for {mixed[0]}; quantize all layers alike"
            )
        if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq"):
            raise CheckpointError(
                f"auto-round's packing_format is {settings.packing_format!r}; supported: auto_round:auto_gptq, "
                "auto_round:auto_awq"
            )
        self._layout = self._layout_with({})

    def _layout_with(self, changes: Mapping[str, Any]) -> Scheme:
        config = {**self._config, **changes}
        if self._settings.packing_format.lower() == "auto_round:auto_awq":
            return AWQ(config)
        return GPTQ({**config, "checkpoint_format": "gptq"})

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        return self._layout.weight_format(name, stored)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """As its layout has it with extra_config's settings of the layer, without an order of inputs."""
        extra = self._settings.extra_config.items()
        changes: dict[str, Any] = next((each for key, each in extra if key == name or matches(f"({key})$", name)), {})
        if changes.get("bits", self._settings.bits) >= 16:
            return None
        tensors = self._layout_with(changes).expected(name, shape, dtype)
        return tensors and {key: tensor for key, tensor in tensors.items() if key != "g_idx"}


@hookimpl
def register_quantizations(register: Register) -> None:
    register("auto-round", AutoRound)
