"""AWQ (https://arxiv.org/abs/2306.00978) in AutoAWQ's `gemm` layout: 4 bits with zero points.

    qweight  int32 [inputs, outputs / 8]    the codes of eight outputs in a word, in the order 0 2 4 6 1 3 5 7
    qzeros   int32 [groups, outputs / 8]    likewise
    scales   float16 [groups, outputs]

The tensors say which layers are quantized; `modules_to_not_convert` of the config is read only where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from device.interface import CanonicalWeight
from sophserve.errors import CheckpointError
from sophserve.model.canonical import even_groups, group_length, int_weight
from sophserve.model.module import ParameterSpec
from sophserve.model.quantization import (
    DenseFormat,
    Scheme,
    WeightFormat,
    WeightPart,
    filled,
    is_left_plain,
    names_layer,
    no_values,
    read_settings,
    unpack_words,
)
from sophserve.model.weights import StoredTensor
from sophserve.plugins import Register, hookimpl

# The place of each of a word's eight outputs.
_PLACE = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


class AWQFormat(WeightFormat):
    def __init__(self, stored: Mapping[str, StoredTensor], group_size: int) -> None:
        self._group_size = group_size
        self._groups = stored["scales"].shape[0] if "scales" in stored else 1

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """The words that hold the rank's outputs, and the scales of all groups."""
        outputs, inputs = part.shape
        if outputs % 8:
            raise CheckpointError(f"AWQ packs 8 outputs in a word, but a layer has {outputs}")
        words, groups = slice(part.rows.start // 8, -(-part.rows.stop // 8)), slice(0, self._groups)
        return {
            "qweight": ParameterSpec((inputs, outputs // 8), (part.columns, words), ("I32",)),
            "qzeros": ParameterSpec((self._groups, outputs // 8), (groups, words), ("I32",)),
            "scales": ParameterSpec((self._groups, outputs), (groups, part.rows)),
        }

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        first = part.rows.start % 8
        held = slice(first, first + part.rows.stop - part.rows.start)

        def unpack(words: Tensor) -> Tensor:
            return unpack_words(words, 4).unflatten(1, (-1, 8))[:, :, _PLACE].flatten(1)[:, held].T

        groups = even_groups(part.shape[1], self._groups, self._group_size)
        codes, zeros = unpack(tensors["qweight"]), unpack(tensors["qzeros"])
        return int_weight(codes.contiguous(), tensors["scales"].T, zeros, groups[part.columns], 4)

    def group_inputs(self, part: WeightPart) -> int:
        return 1 if self._groups == 1 else group_length(part.shape[1], self._groups, self._group_size)


class AWQConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed; w_bit and q_group_size are AWQ's first names of two."""

    bits: int = 0
    w_bit: int = 4
    group_size: int = 0
    q_group_size: int = -1
    version: str = "gemm"
    modules_to_not_convert: list[str] = []


class AWQ(Scheme):
    """Layers with a qweight are quantized, the others are not."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = read_settings(AWQConfig, config)
        self._plain = settings.modules_to_not_convert
        self._group_size = settings.group_size or settings.q_group_size
        bits, version = settings.bits or settings.w_bit, settings.version.lower()
        if bits != 4 or version != "gemm":
            raise CheckpointError(f"AWQ is supported with 4 bits and version gemm, not {bits} bits and {version}")

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        return AWQFormat(stored, self._group_size) if "qweight" in stored else DenseFormat()

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All layers but those left plain and those of modules_to_not_convert, with zero points anywhere."""
        if is_left_plain(name) or any(names_layer(each, name) for each in self._plain):
            return None
        outputs, inputs = shape
        groups = -(-inputs // self._group_size) if self._group_size > 0 else 1
        return {
            "qweight": no_values((inputs, outputs // 8), torch.int32),
            "qzeros": filled((groups, outputs // 8), 0),
            "scales": no_values((groups, outputs), torch.float16),
        }


@hookimpl
def register_quantizations(register: Register) -> None:
    register("awq", AWQ)
