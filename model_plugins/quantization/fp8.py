"""FP8 as DeepSeek, transformers and vLLM write it: float8_e4m3 weights and float32 scales.

Blocks (`weight_block_size`, usually 128 x 128) have `weight_scale_inv`, whole tensors or channels `weight_scale`;
either multiplies. Activations stay in the run's dtype, so `activation_scheme` and `input_scale` are of no use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from model_plugins.quantization.float8 import Float8Format, block_scales, expected_float8
from model_plugins.quantization.round_to_nearest import BLOCK, RoundToNearest, as_float8, round_to_float8
from sophserve.errors import CheckpointError
from sophserve.model.convert import linear_weights, write_checkpoint
from sophserve.model.quantization import (
    DenseFormat,
    Scheme,
    WeightFormat,
    is_dense,
    is_left_plain,
    names_layer,
    read_settings,
    refuse_head_bits,
)
from sophserve.model.weights import StoredTensor
from sophserve.plugins import Register, hookimpl


class FP8Config(msgspec.Struct):
    """The keys of the quantization config that are obeyed."""

    weight_block_size: list[int] | None = None
    fmt: str = "e4m3"
    modules_to_not_convert: list[str] = []
    ignored_layers: list[str] = []


class FP8(Scheme):
    """Layers whose weight is float8 are quantized, the others are not."""

    ignored = re.compile(r"input_scale|activation_scale")

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = read_settings(FP8Config, config)
        block = settings.weight_block_size
        if block is not None and (len(block) != 2 or min(block) < 1):
            raise CheckpointError(f"config.json's weight_block_size must be two sizes, got {block!r}")
        if settings.fmt not in ("e4m3", "float8_e4m3fn"):
            raise CheckpointError(f"config.json's float8 format is {settings.fmt!r}; supported: e4m3")
        self._block = (block[0], block[1]) if block else None
        self._plain = [*settings.modules_to_not_convert, *settings.ignored_layers]

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        if "weight" not in stored or is_dense(stored):
            return DenseFormat()
        if "weight_scale_inv" in stored:
            return Float8Format(name, stored, "weight_scale_inv", self._block)
        return Float8Format(name, stored, "weight_scale", None)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All layers but those left plain and those that the config names."""
        if is_left_plain(name) or any(names_layer(each, name) for each in self._plain):
            return None
        if self._block is None:
            return expected_float8(shape, "weight_scale", (), torch.float32)
        return expected_float8(shape, "weight_scale_inv", block_scales(shape, self._block), torch.float32)

    @classmethod
    def for_dense(cls) -> Scheme:
        """Blocks of 128 x 128, rounded to nearest."""
        return RoundToNearest(as_float8)

    @classmethod
    def convert(
        cls, source: Path, target: Path, on_progress: Callable[[int, int], None], *, head_bits: int = 16
    ) -> None:
        """Blocks of 128 x 128."""
        refuse_head_bits("fp8", head_bits)

        def change(_: str, values: Tensor) -> dict[str, Tensor]:
            rounded, scales = round_to_float8(values)
            return {"weight": rounded, "weight_scale_inv": scales}

        chosen, plain = linear_weights(source)
        config = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head", *plain],
        }
        write_checkpoint(source, target, chosen, change, config, on_progress)


class ModelOptConfig(msgspec.Struct):
    """The keys of ModelOpt's quantization config that are obeyed."""

    quant_algo: str = ""
    exclude_modules: list[str] = []


class ModelOpt(FP8):
    """FP8 as NVIDIA's ModelOpt writes it: a float32 scale for each tensor, and input_scale."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # config.json and hf_quant_config.json have the same keys on other levels.
        inner = config.get("quantization")
        settings = read_settings(ModelOptConfig, inner if isinstance(inner, dict) else config)
        if settings.quant_algo.upper() != "FP8":
            raise CheckpointError(
                f"the checkpoint is quantized by ModelOpt with quant_algo {settings.quant_algo!r}; supported: FP8"
            )
        super().__init__({"ignored_layers": settings.exclude_modules})


@hookimpl
def register_quantizations(register: Register) -> None:
    register("fp8", FP8)
    register("modelopt", ModelOpt)
