"""Writes compressed-tensors: layers of 4 bits, and where that is asked for a head of 8 bits, rounded to nearest."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from device.interface import IntWeight
from model_plugins.quantization.round_to_nearest import group_size_for, round_to_int4
from sophserve.errors import CheckpointError
from sophserve.model.convert import head_weights, linear_weights, write_checkpoint
from sophserve.model.rounding import int8_group_size, round_to_int8
from sophserve.model.weights import find_tensors


def write_compressed(source: Path, target: Path, on_progress: Callable[[int, int], None], head_bits: int) -> None:
    """Write a plain checkpoint in `pack-quantized`, symmetric: 4 bits in groups of 128 (of 64 or 32 where that does not
    divide every layer); with head_bits 8 the head, and the embedding where it is tied, too. Raises CheckpointError."""
    chosen, _ = linear_weights(source)
    heads = head_weights(source) if head_bits == 8 else {}
    odd = next((name for name, each in chosen.items() if each.shape[1] % 32), None)
    if odd is not None:
        raise CheckpointError(f"{odd} has {chosen[odd].shape[1]} inputs, no multiple of 32; use --method fp8")
    size = group_size_for(tensor.shape[1] for tensor in chosen.values()) or 32

    def change(name: str, values: Tensor) -> dict[str, Tensor]:
        weight = round_to_int8(values) if name in heads else round_to_int4(values, size, values.dtype)
        return packed_tensors(weight, values.shape)

    groups = {"group_0": _packed_group(4, size, ["Linear"])}
    ignored = [] if heads else ["lm_head"]
    if heads:
        inputs = next(iter(heads.values())).shape[1]
        tied = any(class_of(name.removesuffix(".weight")) == "Embedding" for name in heads)
        names = ["re:.*lm_head$", "re:.*embed_tokens$"][: 1 + tied]
        # The first that fits a layer counts.
        groups = {"group_0": _packed_group(8, int8_group_size(inputs), names), "group_1": groups["group_0"]}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored + _left_plain(source, chosen.keys() | heads.keys()),
    }
    write_checkpoint(source, target, chosen | heads, change, config, on_progress)


def class_of(layer: str) -> str:
    """The class that transformers makes of a matrix."""
    return "Embedding" if layer.rpartition(".")[2] == "embed_tokens" else "Linear"


def packed_tensors(weight: IntWeight, shape: torch.Size) -> dict[str, Tensor]:
    """The tensors of a weight of that shape whose zero points are in the middle and whose inputs come in order."""
    # The last word of a row is filled up.
    values = F.pad(weight.values, (0, -weight.values.shape[1] % 4))
    return {
        "weight_packed": values.view(torch.int32),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(shape),
    }


def _packed_group(bits: int, size: int | None, targets: list[str]) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group" if size else "channel"}
    return {
        "targets": targets,
        "weights": weights | {"group_size": size, "dynamic": False},
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }


def _left_plain(directory: Path, chosen: Collection[str]) -> list[str]:
    """Names of the linear layers that are not chosen, as regexes where they have numbers in common."""
    layers = [
        name.removesuffix(".weight")
        for name, tensor in find_tensors(directory).items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and name not in chosen
    ]
    words = (re.sub(r"\d+", r"\\d+", re.escape(layer)) for layer in layers if class_of(layer) == "Linear")
    return [f"re:^{word}$" for word in dict.fromkeys(words)]
