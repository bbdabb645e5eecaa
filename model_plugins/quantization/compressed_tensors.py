"""compressed-tensors, what llm-compressor writes: its `pack-quantized` int4 and `float-quantized` float8.

    pack-quantized   weight_packed      int32 [outputs, inputs / 8]    codes, the first in the lowest bits, 8 being 0
                     weight_scale       float [outputs, groups]
                     weight_zero_point  int32 [outputs / 8, groups]    packed down the outputs; not in symmetric layers
                     weight_g_idx       int32 [inputs]                 with actorder; the group of each input
                     weight_shape       int64 [2]
    float-quantized  weight             float8 [outputs, inputs]
                     weight_scale       float, one, [outputs, 1] or a block's

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from device.interface import CanonicalWeight
from model_plugins.quantization.float8 import Float8Format, block_scales, expected_float8
from sophserve.errors import CheckpointError
from sophserve.model.canonical import even_groups, group_length, int_weight, stored_groups
from sophserve.model.module import ParameterSpec
from sophserve.model.quantization import (
    DenseFormat,
    Scheme,
    WeightFormat,
    WeightPart,
    expected_groups,
    filled_words,
    held_words,
    is_dense,
    matches,
    no_values,
    read_settings,
    unpack_held,
    unpack_words,
)
from sophserve.model.weights import INDICES, StoredTensor
from sophserve.plugins import Register, hookimpl

_FORMATS = ("pack-quantized", "float-quantized")


class Weights(msgspec.Struct):
    """How the weights of a group of layers are quantized."""

    num_bits: int = 8
    type: str = "int"
    strategy: str | None = None
    symmetric: bool = True
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    actorder: str | bool | None = None

    @property
    def block(self) -> tuple[int, int] | None:
        """The size of blocks with a scale each."""
        return self.block_structure or (128, 128) if self.strategy == "block" else None

    @property
    def in_order(self) -> bool:
        """Whether inputs of a group stand side by side: only this order is stored, others change the inputs' places."""
        return self.actorder != "group"


class Group(msgspec.Struct):
    """Layers, and how they are quantized."""

    targets: list[str] = []
    weights: Weights | None = None
    format: str | None = None


class CompressedConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed or refused."""

    config_groups: dict[str, Group] = {}
    format: str | None = None
    ignore: list[str] = []
    transform_config: dict[str, Any] = {}
    sparsity_config: dict[str, Any] = {}


class PackedFormat(WeightFormat):
    """One layer of whole numbers of 4 or 8 bits; its sizes are those of its tensors."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], weights: Weights) -> None:
        self._name = name
        self._words = stored["weight_packed"].shape[-1]
        self._group_size = weights.group_size or -1
        self._groups = stored["weight_scale"].shape[-1] if "weight_scale" in stored else 1
        self._has_zeros = "weight_zero_point" in stored
        self._has_order = "weight_g_idx" in stored

    def _bits(self, part: WeightPart) -> int:
        inputs = part.shape[1]
        for bits in (4, 8):
            if self._words == -(-inputs * bits // 32):
                return bits
        raise CheckpointError(
            f"{self._name}.weight_packed has {self._words} words for {inputs} inputs; compressed-tensors are supported "
            "with 4 and 8 bits"
        )

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """The words that hold the rank's inputs; all zero points, which are packed down the outputs."""
        (outputs, inputs), bits = part.shape, self._bits(part)
        held = (part.rows, held_words(part.columns, bits))
        specs = {
            "weight_packed": ParameterSpec((outputs, self._words), held, ("I32",)),
            "weight_scale": ParameterSpec((outputs, self._groups), (part.rows, slice(0, self._groups))),
        }
        if self._has_zeros:
            down = -(-outputs * bits // 32)
            specs["weight_zero_point"] = ParameterSpec((down, self._groups), dtypes=("I32",))
        if self._has_order:
            specs["weight_g_idx"] = ParameterSpec((inputs,), dtypes=INDICES)
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, with the inputs of a group side by side."""
        bits = self._bits(part)
        codes = unpack_held(tensors["weight_packed"], part.columns, bits)
        scales = tensors["weight_scale"]
        zeros = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.uint8)
        if self._has_zeros:
            zeros = unpack_words(tensors["weight_zero_point"].T, bits).T[part.rows]
        groups = even_groups(part.shape[1], self._groups, self._group_size)
        if self._has_order:
            groups = stored_groups(f"{self._name}.weight_g_idx", tensors["weight_g_idx"], groups, self._groups)
        return int_weight(codes, scales, zeros, groups[part.columns], bits)

    def group_inputs(self, part: WeightPart) -> int:
        if self._groups == 1 or self._has_order:
            return 1
        return group_length(part.shape[1], self._groups, self._group_size)


def _means(target: str, layer: str) -> bool:
    """Whether an entry of targets or ignore means a layer: its whole name, or a regex of its beginning."""
    return matches(target[3:], layer) if target.startswith("re:") else target == layer


class CompressedTensors(Scheme):
    """Layers with a weight_packed or a float8 weight are quantized, the others are not."""

    ignored = re.compile(r"weight_shape|input_scale|input_zero_point|input_global_scale")

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = settings = read_settings(CompressedConfig, config)
        if settings.transform_config.get("config_groups"):
            raise CheckpointError("compressed-tensors with a transform_config (rotated activations) are not supported")
        if settings.sparsity_config.get("format", "dense") != "dense":
            raise CheckpointError(
                f"compressed-tensors of sparsity format {settings.sparsity_config['format']!r} are not supported"
            )
        groups = list(settings.config_groups.values())
        formats = {group.format or settings.format for group in groups} or {settings.format}
        if unknown := sorted(str(name) for name in formats if name not in _FORMATS and name != "dense"):
            raise CheckpointError(
                f"compressed-tensors of format {', '.join(unknown)} are not supported; supported: {', '.join(_FORMATS)}"
            )
        for weights in [group.weights for group in groups if group.weights]:
            if weights.num_bits not in (4, 8) or (weights.type == "float" and weights.num_bits != 8):
                raise CheckpointError(
                    f"compressed-tensors weights of {weights.num_bits} bits ({weights.type}) are not supported; "
                    "supported: int of 4 or 8 bits, float of 8 bits"
                )

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        if "weight_packed" in stored:
            return PackedFormat(name, stored, self._weights_of(name))
        if "weight" not in stored or is_dense(stored):
            return DenseFormat()
        return Float8Format(name, stored, "weight_scale", self._weights_of(name).block)

    def _weights_of(self, name: str) -> Weights:
        """What the config has of a layer's weights, by its name or, as all here are, by the class of linear layers."""
        groups = self._config.config_groups.values()
        found = [group.weights for group in groups if any(_means(target, name) for target in group.targets)]
        found += [group.weights for group in groups if "Linear" in group.targets]
        return next((weights for weights in found if weights), Weights(strategy="unknown"))

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All linear layers, but routers and those that `ignore` names; scales have the checkpoint's dtype."""
        (outputs, inputs), weights = shape, self._weights_of(name)
        is_plain = weights.strategy == "unknown" or name.endswith(".gate")
        if is_plain or any(_means(each, name) for each in self._config.ignore):
            return None
        if weights.type == "float":
            channels = (outputs, 1) if weights.strategy == "channel" else (1,)
            scales = block_scales(shape, weights.block) if weights.block else channels
            return expected_float8(shape, "weight_scale", scales, dtype)
        group_of = expected_groups(inputs, weights.group_size or -1, in_order=weights.in_order)
        count = int(group_of.max()) + 1
        tensors = {
            "weight_packed": no_values((outputs, -(-inputs * weights.num_bits // 32)), torch.int32),
            "weight_scale": no_values((outputs, count), dtype),
        }
        if not weights.symmetric:
            tensors["weight_zero_point"] = filled_words((-(-outputs * weights.num_bits // 32), count), 0)
        if not weights.in_order:
            tensors["weight_g_idx"] = group_of
        return tensors


@hookimpl
def register_quantizations(register: Register) -> None:
    register("compressed-tensors", CompressedTensors)
