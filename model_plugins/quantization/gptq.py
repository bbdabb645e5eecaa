"""GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel write it, of 4 and 8 bits.

    qweight  int32 [inputs * bits / 32, outputs]   an output's codes one below the other, the first in the lowest bits
    qzeros   int32 [groups, outputs * bits / 32]   zero points, the first in the lowest bits; in files before
                                                   `checkpoint_format: gptq_v2` one less than they are
    scales   float [groups, outputs]
    g_idx    int32 [inputs]                        the group of each input; with desc_act in no order

The tensors say which layers are quantized, with how many bits and in which groups, so `dynamic`,
`modules_in_block_to_quantize` and `lm_head` of the config need not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from device.interface import CanonicalWeight, IntWeight
from model_plugins.quantization.round_to_nearest import RoundedInt4Format, group_size_for, round_to_int4
from sophserve.errors import CheckpointError
from sophserve.model.canonical import even_groups, int_weight
from sophserve.model.convert import linear_weights, write_checkpoint
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

# "marlin" and others are packed for one device.
_LAYOUTS = ("gptq", "gptq_v2")


class GPTQFormat(WeightFormat):
    """One layer; its sizes are those of its tensors."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], zero_offset: int, group_size: int) -> None:
        self._name = name
        self._group_size = group_size
        self._words = stored["qweight"].shape[0]
        self._groups = stored["scales"].shape[0] if "scales" in stored else 1
        self._has_order = "g_idx" in stored
        self._zero_offset = zero_offset

    def _bits(self, part: WeightPart) -> int:
        bits = 32 * self._words // part.shape[1]
        if bits not in (4, 8) or 32 * self._words != bits * part.shape[1]:
            raise CheckpointError(
                f"{self._name}.qweight has {self._words} rows for {part.shape[1]} inputs; GPTQ is supported with 4 and "
                "8 bits"
            )
        return bits

    def _held_words(self, part: WeightPart) -> slice:
        per_word = 32 // self._bits(part)
        return slice(part.columns.start // per_word, -(-part.columns.stop // per_word))

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """qweight of the rank's inputs and outputs; of what is small, all groups."""
        outputs, inputs = part.shape
        zeros = -(-outputs * self._bits(part) // 32)
        everything = slice(0, self._groups)
        specs = {
            "qweight": ParameterSpec((self._words, outputs), (self._held_words(part), part.rows), ("I32",)),
            "qzeros": ParameterSpec((self._groups, zeros), dtypes=("I32",)),
            "scales": ParameterSpec((self._groups, outputs), (everything, part.rows)),
        }
        if self._has_order:
            specs["g_idx"] = ParameterSpec((inputs,), dtypes=("I32",))
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, with the inputs of a group side by side."""
        bits = self._bits(part)
        codes = unpack_words(tensors["qweight"].T, bits)
        first = part.columns.start - self._held_words(part).start * (32 // bits)
        codes = codes[:, first : first + part.columns.stop - part.columns.start]
        zeros = unpack_words(tensors["qzeros"], bits)[:, part.rows] + self._zero_offset
        if bits == 4:
            zeros &= 15
        groups = even_groups(part.shape[1], self._groups, self._group_size)
        if self._has_order:
            groups = tensors["g_idx"].long()
            if not 0 <= int(groups.min()) <= int(groups.max()) < self._groups:
                raise CheckpointError(f"{self._name}.g_idx names groups beyond the {self._groups} that there are")
        return int_weight(codes, tensors["scales"].T, zeros.T, groups[part.columns], bits)


class GPTQ(Scheme):
    """Layers with a qweight are quantized, the others are not."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        layout = config.get("checkpoint_format") or "gptq"
        if config.get("is_marlin_format") or layout not in _LAYOUTS:
            raise CheckpointError(
                f"the checkpoint's GPTQ layout is {layout!r}; supported: {', '.join(_LAYOUTS)}; convert it with the "
                "tool that made it"
            )
        self._zero_offset = 0 if layout == "gptq_v2" else 1
        self._group_size = config.get("group_size") or -1
        self._config = config

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        """That of its tensors."""
        if "qweight" not in stored:
            return DenseFormat()
        return GPTQFormat(name, stored, self._zero_offset, self._group_size)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """Symmetric layers have all zero points in the middle, and no others need be kept."""
        if self._config.get("dynamic"):
            raise CheckpointError("config.json's dynamic gives layers settings of their own, which only files show")
        chosen = [each for group in self._config.get("modules_in_block_to_quantize") or [] for each in group]
        if name.endswith("lm_head"):
            if not self._config.get("lm_head"):
                return None
        elif chosen and not any(name.endswith(each) for each in chosen):
            return None
        (outputs, inputs), bits = shape, int(self._config.get("bits") or 4)
        in_order = not self._config.get("desc_act") or bool(self._config.get("static_groups"))
        group_of = expected_groups(inputs, self._group_size, in_order=in_order)
        groups = int(group_of.max()) + 1
        middle = (1 << (bits - 1)) - self._zero_offset if self._config.get("sym", True) else 0
        octet = middle if bits == 8 else middle | middle << 4
        return {
            "qweight": no_values((inputs * bits // 32, outputs), torch.int32),
            "qzeros": filled_words((groups, -(-outputs * bits // 32)), octet),
            "scales": no_values((groups, outputs), torch.float16),
            "g_idx": group_of,
        }

    @classmethod
    def for_dense(cls) -> Scheme:
        """4 bits, groups of 128, rounded to nearest."""
        return RoundToInt4()

    @classmethod
    def convert(cls, source: Path, target: Path, on_progress: Callable[[int, int], None]) -> None:
        """4 bits, groups of 128 (of 64 or 32 where that does not divide every layer), symmetric."""
        chosen = linear_weights(source)
        size = group_size_for(tensor.shape[1] for tensor in chosen)
        if size is None or any(tensor.shape[0] % 8 for tensor in chosen):
            raise CheckpointError("GPTQ needs layers whose inputs are a multiple of 32 and whose outputs are one of 8")
        config = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": size,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": False,
        }
        write_checkpoint(
            source, target, chosen, lambda values: gptq_tensors(round_to_int4(values, size)), config, on_progress
        )


def gptq_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """GPTQ's tensors of a weight of 4 bits whose zero points are 8 and whose inputs come in order."""
    codes = weight.values.view(torch.int32)
    groups, outputs = weight.scales.shape[1], len(weight.values)
    return {
        "qweight": codes.T,
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": weight.scales.T,
        "g_idx": (torch.arange(weight.values.shape[1] * 2) // weight.group_size).int(),
    }


class RoundToInt4(Scheme):
    """Quantizes plain layers as they are loaded, but for the head."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        pass

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        """4 bits for every layer of the decoder."""
        return RoundedInt4Format(name) if is_dense(stored) and not name.endswith("lm_head") else DenseFormat()


@hookimpl
def register_quantizations(register: Register) -> None:
    """Add GPTQ."""
    register("gptq", GPTQ)
