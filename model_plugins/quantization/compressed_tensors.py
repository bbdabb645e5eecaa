"""compressed-tensors, what llm-compressor writes: its whole numbers of 4 and 8 bits and its float8.

    pack-quantized   weight_packed      int32 [outputs, inputs / 8]    codes, the first in the lowest bits, 8 being 0
                     weight_scale       float, one, [outputs, 1] or [outputs, groups]
                     weight_zero_point  int32 [outputs / 8, groups]    packed down the outputs; not in symmetric layers
                     weight_g_idx       int32 [inputs]                 with actorder; the group of each input
                     weight_shape       int64 [2]
    int-quantized    weight             int8 [outputs, inputs]         codes, also those of 4 bits, 0 being 0
                     weight_scale       float, one, [outputs, 1] or [outputs, groups]
                     weight_zero_point  int8, as many; not in symmetric layers
    float-quantized  weight             float8 [outputs, inputs]
                     weight_scale       float, one, [outputs, 1] or a block's

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from device.interface import CanonicalWeight
from model_plugins.quantization.compressed_writer import class_of, write_compressed
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
    filled,
    held_words,
    is_dense,
    matches,
    no_values,
    read_settings,
    unpack_held,
    unpack_words,
)
from sophserve.model.weights import FLOATS, INDICES, StoredTensor
from sophserve.plugins import Register, hookimpl

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


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
    def of_tensor(self) -> bool:
        """Whether there is one scale for all."""
        return self.strategy == "tensor" or (self.strategy is None and not self.group_size)

    @property
    def in_order(self) -> bool:
        """Whether inputs of a group stand side by side: only this order is stored, others change the inputs' places."""
        return self.actorder != "group"


class Activations(msgspec.Struct):
    """How what is multiplied with the weights of a group of layers is quantized."""

    num_bits: int = 8
    type: str = "int"
    strategy: str | None = None
    symmetric: bool = True
    dynamic: bool | str = False

    def __str__(self) -> str:
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.type}, {self.num_bits} bits, {self.strategy}, {symmetry}, dynamic: {self.dynamic}".lower()


_BY_ROW = str(Activations(strategy="token", dynamic=True))


class Group(msgspec.Struct):
    """Layers, and how they are quantized."""

    targets: list[str] = []
    weights: Weights | None = None
    input_activations: Activations | None = None
    format: str | None = None

    @property
    def rounds_rows(self) -> bool:
        """Whether rows are rounded to int8. What others round to float8 is taken as it is, which is exacter."""
        return self.input_activations is not None and self.input_activations.type == "int"


class CompressedConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed or refused."""

    config_groups: dict[str, Group] = {}
    format: str | None = None
    ignore: list[str] = []
    transform_config: dict[str, Any] = {}
    sparsity_config: dict[str, Any] = {}


class IntegerFormat(WeightFormat):
    """One layer of whole numbers of 4 or 8 bits, with one scale, one for each output, or some for groups of inputs."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], group: Group | None) -> None:
        if "weight_scale" not in stored:
            raise CheckpointError(f"{name} holds whole numbers, but there is no {name}.weight_scale")
        weights = (group.weights if group else None) or Weights()
        self._name = name
        self._num_bits = weights.num_bits
        self._rounds_rows = group is not None and group.rounds_rows
        self._scale_shape = stored["weight_scale"].shape
        self._groups = self._scale_shape[-1] if self._scale_shape else 1
        self._group_size = weights.group_size or -1
        self._has_zeros = "weight_zero_point" in stored

    def _scale(self, part: WeightPart, dtypes: tuple[str, ...] = FLOATS) -> ParameterSpec:
        """How the scales stand, or what there are as many of."""
        outputs, shape = part.shape[0], self._scale_shape
        if shape == (1,):
            return ParameterSpec(shape, dtypes=dtypes)
        return ParameterSpec((outputs, self._groups), (part.rows, slice(0, self._groups)), dtypes)

    def _canonical(
        self, part: WeightPart, codes: Tensor, scales: Tensor, zeros: Tensor | None, groups: Tensor, bits: int
    ) -> CanonicalWeight:
        shape = len(codes), self._groups
        if zeros is None:
            zeros = torch.full((1, 1), 1 << (bits - 1), dtype=torch.uint8)
        weight = int_weight(codes, scales.expand(shape), zeros.expand(shape), groups[part.columns], bits)
        if not self._rounds_rows:
            return weight
        if weight.scales.shape[1] > 1 and weight.group_size % 32:
            raise CheckpointError(
                f"{self._name} has groups of {weight.group_size} inputs; of layers whose activations are rounded they "
                "must be a multiple of 32"
            )
        return replace(weight, activations="rows")

    def _even_groups(self, part: WeightPart) -> Tensor:
        return even_groups(part.shape[1], self._groups, self._group_size)

    def group_inputs(self, part: WeightPart) -> int:
        return 1 if self._groups == 1 else group_length(part.shape[1], self._groups, self._group_size)


class PackedFormat(IntegerFormat):
    """Its codes in words, as many to each as the tensor's size says."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], group: Group | None) -> None:
        super().__init__(name, stored, group)
        self._words = stored["weight_packed"].shape[-1]
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
            "weight_scale": self._scale(part),
        }
        if self._has_zeros:
            down = -(-outputs * bits // 32)
            specs["weight_zero_point"] = ParameterSpec((down, self._groups), dtypes=("I32",))
        if self._has_order:
            specs["weight_g_idx"] = ParameterSpec((inputs,), dtypes=INDICES)
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, with the inputs of a group side by side."""
        bits, zeros = self._bits(part), None
        codes = unpack_held(tensors["weight_packed"], part.columns, bits)
        if self._has_zeros:
            zeros = unpack_words(tensors["weight_zero_point"].T, bits).T[part.rows]
        groups = self._even_groups(part)
        if self._has_order:
            groups = stored_groups(f"{self._name}.weight_g_idx", tensors["weight_g_idx"], groups, self._groups)
        return self._canonical(part, codes, tensors["weight_scale"], zeros, groups, bits)

    def group_inputs(self, part: WeightPart) -> int:
        return 1 if self._has_order else super().group_inputs(part)


class ByteFormat(IntegerFormat):
    """Its codes in a byte each, 0 being 0."""

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        specs = {
            "weight": ParameterSpec(part.shape, (part.rows, part.columns), ("I8",)),
            "weight_scale": self._scale(part),
        }
        if self._has_zeros:
            specs["weight_zero_point"] = self._scale(part, ("I8",))
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, counted from the least."""
        bits, zeros = self._num_bits, tensors.get("weight_zero_point")
        middle = 1 << (bits - 1)
        codes = _unsigned(tensors["weight"], middle)
        if bits == 4 and not codes.is_meta and bool((codes > 15).any()):
            raise CheckpointError(f"{self._name}.weight holds more than the 4 bits of the quantization config")
        zeros = None if zeros is None else _unsigned(zeros, middle)
        return self._canonical(part, codes, tensors["weight_scale"], zeros, self._even_groups(part), bits)


def _unsigned(codes: Tensor, middle: int) -> Tensor:
    """int8 codes as uint8, `middle` being 0."""
    return codes.view(torch.uint8) + middle


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
        for group, weights in [(group, group.weights) for group in groups if group.weights]:
            if group.rounds_rows and not (weights.type == "int" and str(group.input_activations) == _BY_ROW):
                raise CheckpointError(
                    f"compressed-tensors with {weights.type} weights and activations of {group.input_activations} are "
                    f"not supported; supported: int weights and activations of {_BY_ROW}"
                )
            if weights.num_bits not in (4, 8) or (weights.type == "float" and weights.num_bits != 8):
                raise CheckpointError(
                    f"compressed-tensors weights of {weights.num_bits} bits ({weights.type}) are not supported; "
                    "supported: int of 4 or 8 bits, float of 8 bits"
                )

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        if "weight_packed" in stored:
            return PackedFormat(name, stored, self._group_of(name))
        if "weight" not in stored or is_dense(stored):
            return DenseFormat()
        group = self._group_of(name)
        if stored["weight"].dtype == "I8":
            return ByteFormat(name, stored, group)
        return Float8Format(name, stored, "weight_scale", group.weights.block if group and group.weights else None)

    def _group_of(self, name: str) -> Group | None:
        """The first that names the layer, or else its class."""
        groups = [group for group in self._config.config_groups.values() if group.weights]
        found = [group for group in groups if any(_means(target, name) for target in group.targets)]
        found += [group for group in groups if class_of(name) in group.targets]
        return next(iter(found), None)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All linear layers, but routers and those that `ignore` names; scales have the checkpoint's dtype."""
        (outputs, inputs), group = shape, self._group_of(name)
        is_ignored = name.endswith(".gate") or any(_means(each, name) for each in self._config.ignore)
        if group is None or group.weights is None or is_ignored:
            return None
        weights = group.weights
        scales: tuple[int, ...] = (1,) if weights.of_tensor else (outputs, 1)
        if weights.type == "float":
            scales = block_scales(shape, weights.block) if weights.block else scales
            return expected_float8(shape, "weight_scale", scales, dtype)
        group_of = expected_groups(inputs, weights.group_size or -1, in_order=weights.in_order)
        count = int(group_of.max()) + 1
        scales = scales if weights.of_tensor else (outputs, count)
        tensors = {"weight_scale": no_values(scales, dtype)}
        if (group.format or self._config.format) != "pack-quantized":
            tensors["weight"] = no_values(shape, torch.int8)
            if not weights.symmetric:
                tensors["weight_zero_point"] = filled(scales, 1, torch.int8)
            return tensors
        tensors["weight_packed"] = no_values((outputs, -(-inputs * weights.num_bits // 32)), torch.int32)
        if not weights.symmetric:
            tensors["weight_zero_point"] = filled((-(-outputs * weights.num_bits // 32), count), 0)
        if not weights.in_order:
            tensors["weight_g_idx"] = group_of
        return tensors

    def expected_embedding(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """Those that a group names, or whose class it does."""
        return self.expected(name, shape, dtype)

    @classmethod
    def convert(
        cls, source: Path, target: Path, on_progress: Callable[[int, int], None], *, head_bits: int = 16
    ) -> None:
        """As `write_compressed` does."""
        write_compressed(source, target, on_progress, head_bits)


@hookimpl
def register_quantizations(register: Register) -> None:
    register("compressed-tensors", CompressedTensors)
