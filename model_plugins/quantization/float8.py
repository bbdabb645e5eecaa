"""Layers of float8_e4m3 weights with float32 scales, as more than one method stores them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from device.interface import CanonicalWeight
from sophserve.errors import CheckpointError
from sophserve.model.canonical import float8_weight
from sophserve.model.module import ParameterSpec
from sophserve.model.quantization import WeightFormat, WeightPart, no_values
from sophserve.model.weights import FLOATS, StoredTensor


def expected_float8(
    shape: tuple[int, int], scale_name: str, scale_shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Tensor]:
    """What `Scheme.expected` says of a layer."""
    return {"weight": no_values(shape, torch.float8_e4m3fn), scale_name: no_values(scale_shape, scale_dtype)}


def block_scales(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """The shape of the scales of blocks."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


class Float8Format(WeightFormat):
    """One layer: `weight` float8 `[outputs, inputs]`, and the tensor `scale_name` that multiplies it.

    The scale is one for the whole tensor, one for each output, or one for each block of outputs and inputs.
    """

    def __init__(
        self, name: str, stored: Mapping[str, StoredTensor], scale_name: str, block: tuple[int, int] | None
    ) -> None:
        if stored["weight"].within is not None:
            stack = stored["weight"]
            raise CheckpointError(
                f"{stack.name} in {stack.file} is a stack of experts stored as F8_E4M3; those are read as tensors of "
                "each expert, which transformers writes with save_original_format=True"
            )
        if scale_name not in stored:
            raise CheckpointError(f"{name}.weight is stored as F8_E4M3, but there is no {name}.{scale_name}")
        self._name = name
        self._scale_name = scale_name
        self._scale_shape = stored[scale_name].shape
        self._block = block

    def parameters(self, part: WeightPart) -> dict[str, ParameterSpec]:
        outputs, inputs = part.shape
        allowed: list[tuple[int, ...]] = [(), (1,), (outputs,), (outputs, 1)]
        if self._block is not None:
            allowed = [block_scales(part.shape, self._block)]
        if self._scale_shape not in allowed:
            raise CheckpointError(
                f"{self._name}.{self._scale_name} has shape {list(self._scale_shape)}; a weight of {outputs} x "
                f"{inputs} takes {' or '.join(str(list(shape)) for shape in allowed)}"
            )
        return {
            "weight": ParameterSpec(part.shape, (part.rows, part.columns), ("F8_E4M3",)),
            self._scale_name: ParameterSpec(self._scale_shape, dtypes=FLOATS),
        }

    def group_inputs(self, part: WeightPart) -> int:
        return self._block[1] if self._block and self._block[1] < part.shape[1] else 1

    def read(self, part: WeightPart, tensors: Mapping[str, Tensor]) -> CanonicalWeight:
        """The rank's values with a scale for each output and group."""
        outputs, inputs = part.shape
        scale = tensors[self._scale_name].float()
        groups = torch.zeros(inputs, dtype=torch.int64)
        if self._block is not None:
            scale = scale.repeat_interleave(self._block[0], dim=0)
            groups = torch.arange(inputs) // self._block[1]
        else:
            scale = scale.reshape(prod(scale.shape), 1).expand(outputs, 1)
        return float8_weight(tensors["weight"], scale[:outputs][part.rows], groups[part.columns])
