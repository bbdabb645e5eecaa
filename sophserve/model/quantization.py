"""How weights stand on disk: the interface between checkpoints, quantization plugins and linear layers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import torch
from torch import Tensor

from device.interface import CanonicalWeight, DenseWeight
from sophserve.checkpoint import quantization_config
from sophserve.errors import CheckpointError
from sophserve.fit import check_quantizes, stored_method
from sophserve.model.module import ParameterSpec
from sophserve.model.weights import FLOATS, StoredTensor
from sophserve.plugins import quantizations

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True)
class WeightPart:
    """The part of a linear weight of `shape` `(out_features, in_features)` that a rank holds."""

    shape: tuple[int, int]
    rows: slice
    columns: slice


class WeightFormat(ABC):
    """How one linear weight stands on disk."""

    @abstractmethod
    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        """The tensors to read, by the last component of their names. Raises CheckpointError for impossible sizes."""

    @abstractmethod
    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's part. May refer to the tensors, which go away once the weight is packed."""

    def group_inputs(self, part: WeightPart) -> int:
        """How many inputs stand side by side in a group with scales of its own; 1 where they are in no order, or all in
        one."""
        return 1


class DenseFormat(WeightFormat):
    """A plain tensor of floating-point numbers."""

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        return {"weight": ParameterSpec(part.shape, (part.rows, part.columns))}

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        return DenseWeight(tensors["weight"])


class Scheme(ABC):
    """A quantization method: made from the checkpoint's quantization_config, it knows every layer's format.

    ignored: matches the last components of tensors that are of no use here.
    """

    ignored: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")

    @abstractmethod
    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError for what the plugin does not implement."""

    @abstractmethod
    def weight_format(self, name: str, stored: Mapping[str, StoredTensor]) -> WeightFormat:
        """The format of linear layer `name`. stored: its tensors by the last component of their names."""

    def expected(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """The tensors that a checkpoint with this config holds of linear layer `name`, by the last component of their
        names; None for a plain weight. `shape` is that of the whole weight, dtype that of the checkpoint.

        They are on the meta device but for those whose values decide the size of what is loaded. Raises CheckpointError
        where only the files themselves can tell.
        """
        raise CheckpointError(
            f"{type(self).__name__} does not say what a checkpoint holds, so only loading it shows what it takes"
        )

    def expected_embedding(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """As `expected`, of an embedding, which few methods quantize, and of a head that is tied to it."""
        return None

    @classmethod
    def for_dense(cls) -> Scheme | None:
        """A scheme that quantizes the layers of a plain checkpoint as they are loaded; None where there is none."""
        return None

    @classmethod
    def convert(
        cls, source: Path, target: Path, on_progress: Callable[[int, int], None], *, head_bits: int = 16
    ) -> None:
        """Write a plain checkpoint quantized. on_progress receives bytes done and in all. head_bits: those of the head,
        and of the embedding where it is tied. Raises CheckpointError."""
        raise CheckpointError("this method reads checkpoints, it does not write any; use gptq or fp8")


def refuse_head_bits(method: str, head_bits: int) -> None:
    """Raise CheckpointError, for a method that leaves the head as it is, unless that is what is asked for."""
    if head_bits != 16:
        raise CheckpointError(
            f"{method} writes plain heads; use --method compressed-tensors with --head-bits {head_bits}"
        )


def read_settings(kind: type[S], config: Mapping[str, Any]) -> S:
    """The keys of a quantization config that a scheme obeys, of the types that the struct gives them. null is as good
    as absent. Raises CheckpointError."""
    try:
        return msgspec.convert({key: value for key, value in config.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"the checkpoint's quantization config cannot be used: {error}") from None


# The head, what says which experts a token goes through and how much they count, of layers that predict further tokens
# what is no layer of a decoder, and all that only images go through.
_LEFT_PLAIN = re.compile(
    r"(.*\.)?(lm_head|gate|shared_expert_gate|embed_tokens|shared_head\.head|eh_proj"
    r"|(visual|vision_tower|vision_model|multi_modal_projector|mm_projector)(\..*)?)"
)


def is_left_plain(layer: str) -> bool:
    """Whether a linear layer is one of those that no tool quantizes unless it is asked to."""
    return _LEFT_PLAIN.fullmatch(layer) is not None


def is_rounded(layer: str) -> bool:
    """Whether a linear layer is quantized where a plain checkpoint is. What makes keys and values of latents is not:
    devices multiply it with other factors first and for that dequantize it, so it would only lose."""
    return not is_left_plain(layer) and not layer.endswith(".kv_b_proj")


def names_layer(pattern: str, layer: str) -> bool:
    """Whether an entry of a config's list of plain layers means this one: some components of its name one after the
    other, `gate` of `mlp.gate` but not of `gate_proj`, in which `*` is any text."""
    words = re.escape(pattern.strip(".")).replace(r"\*", ".*")
    return re.search(rf"(^|\.){words}(\.|$)", layer) is not None


def matches(regex: str, layer: str) -> bool:
    """Whether a config's regex fits the beginning of a layer's name. Raises CheckpointError for one that is none."""
    try:
        return re.match(regex, layer) is not None
    except re.error as error:
        raise CheckpointError(f"the checkpoint's quantization config has {regex!r}, no regex: {error}") from None


def is_dense(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a layer's weight is a plain tensor."""
    return "weight" in stored and stored["weight"].dtype in FLOATS


def find_scheme(directory: Path, config: Mapping[str, Any], asked: str | None = None) -> Scheme | None:
    """The scheme of a checkpoint; None for a plain one, unless `asked` names one to quantize it with on loading.

    Raises CheckpointError or ConfigError.
    """
    known = quantizations()
    given = quantization_config(directory, config)
    if given is not None:
        scheme: Scheme = known[stored_method(given, asked, known)].value(given)
        return scheme
    if asked is None:
        return None
    able = {name: found for name, entry in known.items() if (found := entry.value.for_dense()) is not None}
    check_quantizes(asked, able)
    return able[asked]


@cache
def no_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that has no values, for `Scheme.expected`; the same one whenever it is asked for, as with the others."""
    return torch.empty(shape, dtype=dtype, device="meta")


@cache
def filled(shape: tuple[int, ...], octet: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Whole numbers of equal octets, for `Scheme.expected`; they take no memory."""
    return torch.full((dtype.itemsize,), octet, dtype=torch.uint8).view(dtype).expand(shape)


@cache
def expected_groups(inputs: int, group_size: int, *, in_order: bool) -> Tensor:
    """int32 `[inputs]`: the group of each input, for `Scheme.expected`. Where activations decide it, a random one
    stands for it."""
    groups = torch.arange(inputs, dtype=torch.int32) // (group_size if group_size > 0 else inputs)
    return groups if in_order else groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]


def held_words(held: slice, bits: int) -> slice:
    """The int32 words that hold a range of codes, of which neighbouring ranks may share the first or the last one."""
    return slice(held.start * bits // 32, -(-held.stop * bits // 32))


def unpack_held(words: Tensor, held: slice, bits: int) -> Tensor:
    """From the words of held_words, `[rows, words]`, the range's codes, uint8 `[rows, codes]`."""
    first = held.start - held_words(held, bits).start * 32 // bits
    return unpack_words(words, bits)[:, first : first + held.stop - held.start]


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 `[rows, words]` to uint8 `[rows, words * 32 / bits]`, the lowest bits first."""
    # A row of one word may have any stride, of which torch makes no octets.
    octets = words.contiguous().flatten().view(torch.uint8).view(len(words), -1)
    if bits == 8:
        return octets
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
