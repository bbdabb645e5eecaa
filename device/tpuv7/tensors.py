"""Tensors in the chip's memory.

To torch they are tensors of the host, so that they go wherever one goes. Views cost nothing, rows are gathered on the
chip; everything else that torch is asked to do with them is done on the host, on a copy, and stays there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from device.tpuv7.chip import Block, Chip
from device.tpuv7.commands import DTYPES, Embedding

_aten = torch.ops.aten


class ChipTensor(Tensor):
    """Values in a block of the chip's memory.

    shapes: a tensor of torch's meta device that has its shape, strides and offset.
    """

    block: Block
    shapes: Tensor

    @staticmethod
    def __new__(cls, block: Block, shapes: Tensor) -> ChipTensor:
        with torch.inference_mode(False):  # one that is made before a step is viewed in it
            made: ChipTensor = Tensor._make_wrapper_subclass(
                cls,
                shapes.shape,
                strides=shapes.stride(),
                storage_offset=shapes.storage_offset(),
                dtype=shapes.dtype,
                device=torch.device("cpu"),
            )
        made.block, made.shapes = block, shapes
        return made

    @property
    def address(self) -> int:
        """Of the first value, in the chip's memory."""
        return self.block.address + int(self.shapes.storage_offset()) * self.shapes.itemsize

    def to_host(self) -> Tensor:
        """A copy in the host's memory."""
        if not self.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride(), strict=True))
        values = torch.empty(span, dtype=self.dtype)
        self.block.chip.download(self.address, values)
        return values.as_strided(self.shape, self.stride())

    def fill_from(self, tensor: Tensor) -> None:
        """Take the values of a host tensor of this shape; this one is contiguous."""
        assert self.shapes.is_contiguous() and tensor.shape == self.shape
        self.block.chip.upload(self.address, tensor.to(self.dtype))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"ChipTensor({list(self.shape)}, {self.dtype}, address={self.address:#x})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function.decompose(*args, **kwargs)  # what is made of others, and may or may not be a view
        if result is not NotImplemented:
            return result
        if is_view(function) and isinstance(args[0], ChipTensor):
            block = args[0].block
            result = function(args[0].shapes, *args[1:], **kwargs)
            return tree_map_only(Tensor, lambda shapes: ChipTensor(block, shapes), result)
        if function is _aten.index.Tensor and (rows := _gathered(*args)) is not None:
            return rows
        if function is _aten.copy_.default and isinstance(args[0], ChipTensor):
            args[0].fill_from(_host(args[1]).expand(args[0].shape))
            return args[0]
        if function._schema.is_mutable and isinstance(args[0], ChipTensor):
            raise NotImplementedError(f"{function} does not work on a tensor of the chip")
        return function(*tree_map_only(ChipTensor, _host, args), **tree_map_only(ChipTensor, _host, kwargs))


def empty(chip: Chip, shape: Sequence[int], dtype: torch.dtype) -> ChipTensor:
    """A tensor for a result. Raises OutOfDeviceMemory."""
    shapes = torch.empty(shape, dtype=dtype, device="meta")
    return ChipTensor(chip.new(shapes.nbytes), shapes)


def on_chip(chip: Chip, tensor: Tensor) -> ChipTensor:
    """A tensor as it is if it is on the chip, otherwise a copy there."""
    if isinstance(tensor, ChipTensor):
        return tensor
    return ChipTensor(chip.store(tensor), torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))


def is_view(function: Any) -> bool:
    """Whether all that an operator of torch returns is a view of what it was given."""
    returns = function._schema.returns
    return bool(returns) and all(each.alias_info and not each.alias_info.is_write for each in returns)


def gather_rows(table: ChipTensor, ids: Tensor, first: int = 0) -> ChipTensor:
    """Rows of a contiguous table `[rows, width]` for ids int32; rows of 0 where an id less first is none of them."""
    chip = table.block.chip
    ids = on_chip(chip, ids)
    out = empty(chip, (len(ids), table.shape[1]), table.dtype)
    chip.add(
        Embedding(
            rows=len(ids),
            dtype=DTYPES[table.dtype],
            out=out.address,
            table=table.address,
            ids=ids.address,
            hidden=table.shape[1],
            vocab=len(table),
            first=first,
        )
    )
    return out


def _gathered(table: Any, indices: Sequence[Any]) -> Tensor | None:
    """table[rows], where that is what is meant."""
    [rows, *others] = indices
    simple = isinstance(table, ChipTensor) and table.dim() == 2 and table.is_contiguous() and not others
    if not simple or isinstance(rows, ChipTensor) or rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
        return None
    return gather_rows(table, rows.int())


def _host(tensor: Any) -> Any:
    return tensor.to_host() if isinstance(tensor, ChipTensor) else tensor
