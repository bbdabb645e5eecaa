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

import torch
from torch import Tensor

from device.interface import CanonicalWeight
from model_plugins.quantization.float8 import Float8Format, block_scales, expected_float8
from sophserve.errors import CheckpointError
from sophserve.model.canonical import even_groups, int_weight
from sophserve.model.module import ParameterSpec
from sophserve.model.quantization import (
    DenseFormat,
    Scheme,
    WeightFormat,
    WeightPart,
    expected_groups,
    filled_words,
    is_dense,
    no_values,
    unpack_words,
)
from sophserve.model.weights import StoredTensor
from sophserve.plugins import Register, hookimpl

_FORMATS = ("pack-quantized", "float-quantized")


class PackedFormat(WeightFormat):
    """One layer of whole numbers of 4 or 8 bits."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], bits: int, group_size: int) -> None:
        self._name = name
        self._bits = bits
        self._group_size = group_size
        self._groups = stored["weight_scale"].shape[-1] if "weight_scale" in stored else 1
        self._has_zeros = "weight_zero_point" in stored
        self._has_order = "weight_g_idx" in stored

    def _held_words(self, part: WeightPart) -> slice:
        per_word = 32 // self._bits
        return slice(part.columns.start // per_word, -(-part.columns.stop // per_word))

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """The words that hold the rank's inputs; all zero points, which are packed down the outputs."""
        outputs, inputs = part.shape
        words = -(-inputs * self._bits // 32)
        specs = {
            "weight_packed": ParameterSpec((outputs, words), (part.rows, self._held_words(part)), ("I32",)),
            "weight_scale": ParameterSpec((outputs, self._groups), (part.rows, slice(0, self._groups))),
        }
        if self._has_zeros:
            down = -(-outputs * self._bits // 32)
            specs["weight_zero_point"] = ParameterSpec((down, self._groups), dtypes=("I32",))
        if self._has_order:
            specs["weight_g_idx"] = ParameterSpec((inputs,), dtypes=("I32",))
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, with the inputs of a group side by side."""
        first = part.columns.start - self._held_words(part).start * (32 // self._bits)
        codes = unpack_words(tensors["weight_packed"], self._bits)
        codes = codes[:, first : first + part.columns.stop - part.columns.start]
        scales = tensors["weight_scale"]
        zeros = torch.full(scales.shape, 1 << (self._bits - 1), dtype=torch.uint8)
        if self._has_zeros:
            zeros = unpack_words(tensors["weight_zero_point"].T, self._bits).T[part.rows]
        groups = even_groups(part.shape[1], self._groups, self._group_size)
        if self._has_order:
            groups = tensors["weight_g_idx"].long()
            if not 0 <= int(groups.min()) <= int(groups.max()) < self._groups:
                raise CheckpointError(
                    f"{self._name}.weight_g_idx names groups beyond the {self._groups} that there are"
                )
        return int_weight(codes, scales, zeros, groups[part.columns], self._bits)


class CompressedTensors(Scheme):
    """Layers with a weight_packed or a float8 weight are quantized, the others are not."""

    ignored = re.compile(r"weight_shape|input_scale|input_zero_point|input_global_scale|[kv]_scale")

    def __init__(self, config: Mapping[str, Any]) -> None:
        groups = config.get("config_groups") or {}
        self._config = config
        formats = {group.get("format") or config.get("format") for group in groups.values()} or {config.get("format")}
        if unknown := sorted(str(name) for name in formats if name not in _FORMATS and name != "dense"):
            raise CheckpointError(
                f"compressed-tensors of format {', '.join(unknown)} are not supported; supported: {', '.join(_FORMATS)}"
            )
        self._bits, self._group_size = 4, -1
        self._block: tuple[int, int] | None = None
        for group in groups.values():
            weights = group.get("weights") or {}
            bits = weights.get("num_bits", 4)
            if weights.get("type", "int") == "int":
                self._bits, self._group_size = bits, weights.get("group_size") or -1
            if bits not in (4, 8) or (weights.get("type") == "float" and bits != 8):
                raise CheckpointError(
                    f"compressed-tensors weights of {bits} bits ({weights.get('type', 'int')}) are not supported; "
                    "supported: int of 4 or 8 bits, float of 8 bits"
                )
            if weights.get("strategy") == "block":
                block = weights.get("block_structure") or [128, 128]
                self._block = (block[0], block[1])

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        """That of its tensors."""
        if "weight_packed" in stored:
            return PackedFormat(name, stored, self._bits, self._group_size)
        if "weight" not in stored or is_dense(stored):
            return DenseFormat()
        return Float8Format(name, stored, "weight_scale", self._block)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All linear layers but those that `ignore` names; scales have the checkpoint's dtype."""
        for each in self._config.get("ignore") or []:
            if re.match(each[3:], name) if each.startswith("re:") else each == name:
                return None
        groups = list((self._config.get("config_groups") or {}).values())
        if len(groups) != 1 or groups[0].get("targets") != ["Linear"]:
            raise CheckpointError("config.json's config_groups differ between layers in a way that only files show")
        (outputs, inputs), weights = shape, groups[0].get("weights") or {}
        if weights.get("type", "int") == "float":
            channels = (outputs, 1) if weights.get("strategy") == "channel" else (1,)
            scales = block_scales(shape, self._block) if self._block else channels
            return expected_float8(shape, "weight_scale", scales, dtype)
        # Only this one stores an order; the others put the inputs in it.
        in_order = weights.get("actorder") != "group"
        group_of = expected_groups(inputs, self._group_size, in_order=in_order)
        count = int(group_of.max()) + 1
        tensors = {
            "weight_packed": no_values((outputs, -(-inputs * self._bits // 32)), torch.int32),
            "weight_scale": no_values((outputs, count), dtype),
        }
        if not weights.get("symmetric", True):
            tensors["weight_zero_point"] = filled_words((-(-outputs * self._bits // 32), count), 0)
        if not in_order:
            tensors["weight_g_idx"] = group_of
        return tensors


@hookimpl
def register_quantizations(register: Register) -> None:
    """Add compressed-tensors."""
    register("compressed-tensors", CompressedTensors)
