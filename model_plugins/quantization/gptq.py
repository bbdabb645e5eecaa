"""GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel write it, of 4 and 8 bits.

    qweight  int32 [inputs * bits / 32, outputs]   an output's codes one below the other, the first in the lowest bits
    qzeros   int32 [groups, outputs * bits / 32]   zero points, the first in the lowest bits; see ZeroPoints
    scales   float [groups, outputs]
    g_idx    int32 [inputs]                        the group of each input; with desc_act in no order

The tensors say which layers are quantized, with how many bits and in which groups; `modules_in_block_to_quantize` and
`lm_head` of the config are read only where there are none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from device.interface import CanonicalWeight, IntWeight
from model_plugins.quantization.round_to_nearest import RoundToNearest, group_size_for, round_to_int4
from sophserve.errors import CheckpointError
from sophserve.model.canonical import even_groups, group_length, int_weight, stored_groups
from sophserve.model.convert import linear_weights, write_checkpoint
from sophserve.model.module import ParameterSpec
from sophserve.model.quantization import (
    DenseFormat,
    Scheme,
    WeightFormat,
    WeightPart,
    expected_groups,
    filled,
    held_words,
    is_left_plain,
    matches,
    no_values,
    read_settings,
    refuse_head_bits,
    unpack_held,
    unpack_words,
)
from sophserve.model.weights import INDICES, StoredTensor
from sophserve.plugins import Register, hookimpl

log = logging.getLogger(__name__)

ZeroPoints = Literal["middle", "as stored", "a word less", "a field less", "less"]
"""How a file keeps its zero points: not at all, as those of symmetric layers are in the middle whatever the file says
(as others' kernels have it); as they are (`gptq_v2`); or one less (`gptq`), where the one was taken from the whole
word, with borrow (GPTQModel), or from each field, without (AutoGPTQ). `less`: of the last two it is not known which;
they differ where a zero point is 0."""


class GPTQConfig(msgspec.Struct):
    """The keys of the quantization config that are obeyed. `format` is GPTQModel's other name of checkpoint_format."""

    bits: int = 4
    group_size: int = -1
    sym: bool | None = None
    desc_act: bool = False
    static_groups: bool = False
    checkpoint_format: str = ""
    format: str = ""
    is_marlin_format: bool = False
    lm_head: bool = False
    dynamic: dict[str, Any] = {}
    modules_in_block_to_quantize: list[list[str] | str] = []
    meta: dict[str, Any] = {}

    @property
    def layout(self) -> str:
        """`gptq` or `gptq_v2`. Raises CheckpointError for others, which are packed for one device."""
        names = list(dict.fromkeys(name.lower() for name in (self.checkpoint_format, self.format) if name))
        if len(names) > 1:
            raise CheckpointError(
                f"the checkpoint's quantization config has checkpoint_format {names[0]!r} and format {names[1]!r}; "
                "leave in the one that is true"
            )
        layout = "marlin" if self.is_marlin_format else (names or ["gptq"])[0]
        if layout not in ("gptq", "gptq_v2"):
            raise CheckpointError(
                f"the checkpoint's GPTQ layout is {layout!r}; supported: gptq, gptq_v2; convert it with the tool that "
                "made it"
            )
        return layout

    @property
    def in_order(self) -> bool:
        """Whether inputs of a group stand side by side."""
        return not self.desc_act or self.static_groups

    def of(self, layer: str) -> GPTQConfig | None:
        """With what `dynamic` has of a layer: the first rule whose regex fits counts, and one behind `-:` leaves the
        layer plain, which is None. Raises CheckpointError."""
        for pattern, changes in self.dynamic.items():
            if matches(pattern.removeprefix("+:").removeprefix("-:"), layer):
                if pattern.startswith("-:"):
                    return None
                return read_settings(GPTQConfig, msgspec.to_builtins(self) | (changes or {}) | {"dynamic": {}})
        return self

    @property
    def zero_points(self) -> ZeroPoints:
        """How zero points are kept."""
        if self.sym:
            return "middle"
        if self.layout == "gptq_v2":
            return "as stored"
        quantizer = str(self.meta.get("quantizer", "")).lower()
        return "a word less" if "gptqmodel" in quantizer else "a field less" if "autogptq" in quantizer else "less"


class GPTQFormat(WeightFormat):
    """One layer; its sizes are those of its tensors."""

    def __init__(self, name: str, stored: Mapping[str, StoredTensor], config: GPTQConfig) -> None:
        self._name = name
        self._group_size = config.group_size
        self._words = stored["qweight"].shape[0]
        self._groups = stored["scales"].shape[0] if "scales" in stored else 1
        # Files of kernels that need no order keep an empty one.
        self._has_order = "g_idx" in stored and stored["g_idx"].shape != (0,)
        self._in_order = config.in_order or not self._has_order
        self._zero_points = config.zero_points

    def _bits(self, part: WeightPart) -> int:
        bits = 32 * self._words // part.shape[1]
        if bits not in (4, 8) or 32 * self._words != bits * part.shape[1]:
            raise CheckpointError(
                f"{self._name}.qweight has {self._words} rows for {part.shape[1]} inputs; GPTQ is supported with 4 and "
                "8 bits"
            )
        return bits

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """qweight of the rank's inputs and outputs; of what is small, all groups."""
        (outputs, inputs), bits = part.shape, self._bits(part)
        zeros = -(-outputs * bits // 32)
        everything = slice(0, self._groups)
        specs = {
            "qweight": ParameterSpec((self._words, outputs), (held_words(part.columns, bits), part.rows), ("I32",)),
            "qzeros": ParameterSpec((self._groups, zeros), dtypes=("I32",)),
            "scales": ParameterSpec((self._groups, outputs), (everything, part.rows)),
        }
        if self._has_order:
            specs["g_idx"] = ParameterSpec((inputs,), dtypes=INDICES)
        return specs

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's codes, with the inputs of a group side by side."""
        bits = self._bits(part)
        codes = unpack_held(tensors["qweight"].T, part.columns, bits)
        zeros = self._zeros(tensors["qzeros"], bits)[:, part.rows]
        groups = even_groups(part.shape[1], self._groups, self._group_size)
        if self._has_order:
            groups = stored_groups(f"{self._name}.g_idx", tensors["g_idx"], groups, self._groups)
        return int_weight(codes, tensors["scales"].T, zeros.T, groups[part.columns], bits)

    def group_inputs(self, part: WeightPart) -> int:
        if self._groups == 1 or not self._in_order:
            return 1
        return group_length(part.shape[1], self._groups, self._group_size)

    def _zeros(self, words: Tensor, bits: int) -> Tensor:
        """uint8 `[groups, outputs]` of the words of qzeros."""
        kept = unpack_words(words, bits)
        one_in_each = 0x11111111 if bits == 4 else 0x01010101
        match self._zero_points:
            case "middle":
                return torch.full_like(kept, 1 << (bits - 1))
            case "as stored":
                return kept
            case "a word less":
                return unpack_words(words + one_in_each, bits)
        by_field = (kept + 1) & ((1 << bits) - 1)
        if self._zero_points == "less" and not torch.equal(by_field, unpack_words(words + one_in_each, bits)):
            log.warning(
                "%s.qzeros holds zero points of 0, of which AutoGPTQ and GPTQModel mean different things, and the "
                "quantization config's meta.quantizer does not tell which wrote them: they are read as AutoGPTQ's",
                self._name,
            )
        return by_field


class GPTQ(Scheme):
    """Layers with a qweight are quantized, the others are not."""

    ignored = re.compile("g_idx")  # an empty one

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = read_settings(GPTQConfig, config)
        self._config.layout  # noqa: B018 - raises for one that cannot be read

    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        if "qweight" not in stored:
            return DenseFormat()
        return GPTQFormat(name, stored, self._config.of(name) or self._config)

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All that has a value of its own: the zero points of layers that are not symmetric."""
        config = self._config.of(name)
        if config is None or not self._is_chosen(name):
            return None
        (outputs, inputs), bits = shape, config.bits
        group_of = expected_groups(inputs, config.group_size, in_order=config.in_order)
        groups = int(group_of.max()) + 1
        # Zero points that are all in the middle need not be kept by a device.
        octet = 0 if config.sym is False else 0x77 if bits == 4 else 0x7F
        return {
            "qweight": no_values((inputs * bits // 32, outputs), torch.int32),
            "qzeros": filled((groups, -(-outputs * bits // 32)), octet),
            "scales": no_values((groups, outputs), torch.float16),
            "g_idx": group_of,
        }

    def _is_chosen(self, layer: str) -> bool:
        config = self._config
        if is_left_plain(layer):
            return config.lm_head and layer.endswith("lm_head")
        groups = [[each] if isinstance(each, str) else each for each in config.modules_in_block_to_quantize]
        return not groups or any(layer.endswith(f".{each}") for group in groups for each in group)

    @classmethod
    def for_dense(cls) -> Scheme:
        """4 bits, groups of 128, rounded to nearest."""
        return RoundToNearest(round_to_int4)

    @classmethod
    def convert(
        cls, source: Path, target: Path, on_progress: Callable[[int, int], None], *, head_bits: int = 16
    ) -> None:
        """4 bits, groups of 128 (of 64 or 32 where that does not divide every layer), symmetric."""
        refuse_head_bits("gptq", head_bits)
        chosen, plain = linear_weights(source)
        odd = next((name for name, each in chosen.items() if each.shape[1] % 32 or each.shape[0] % 8), None)
        if odd is not None:
            outputs, inputs = chosen[odd].shape
            raise CheckpointError(
                f"{odd} has {inputs} inputs and {outputs} outputs, but GPTQ needs a multiple of 32 and one of 8; use "
                "--method fp8"
            )
        size = group_size_for(tensor.shape[1] for tensor in chosen.values())
        config: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": size,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": False,
        }
        if plain:
            layers = dict.fromkeys(re.sub(r"\d+", r"\\d+", re.escape(layer)) for layer in plain)
            config["dynamic"] = {f"-:{layer}$": {} for layer in layers}
        write_checkpoint(
            source, target, chosen, lambda _, values: gptq_tensors(round_to_int4(values, size)), config, on_progress
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


@hookimpl
def register_quantizations(register: Register) -> None:
    register("gptq", GPTQ)
