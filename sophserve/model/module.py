"""The tree of a model: declare the parameters first, load them later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from device.interface import PackedWeight, Role
from sophserve.fit import CannotSplit
from sophserve.model.context import ModelContext
from sophserve.model.weights import FLOATS


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor of a checkpoint, as a module expects it.

    shape: of the whole tensor on disk. shard: the index of the part that this rank holds; empty for all of
    it. dtypes: those that it may have, by safetensors' names.
    """

    shape: tuple[int, ...]
    shard: tuple[slice, ...] = ()
    dtypes: tuple[str, ...] = FLOATS


class Module:
    """A node of the tree. Its children are the modules among its public attributes and in their lists.

    Modules with weights are leaves: `parameters` declares what they need, `load` receives it.
    """

    __call__: Callable[..., Any]

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules right below this one, named as attributes: `embedding`, `layers.0`."""
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{index}", item

    def named_modules(self, path: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it with their paths, such as `layers.0.attention.qkv`."""
        yield path, self
        for name, child in self.children():
            yield from child.named_modules(f"{path}.{name}" if path else name)

    def modules(self) -> Iterator[Module]:
        for _, module in self.named_modules():
            yield module

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded weights of this module and all below it."""
        return sum(
            value.nbytes
            for module in self.modules()
            for value in vars(module).values()
            if isinstance(value, (Tensor, PackedWeight)) and not isinstance(value, Module)
        )

    @property
    def rounds_rows(self) -> bool:
        """Whether rows are rounded to int8 before they meet some of these weights."""
        values = (value for module in self.modules() for value in vars(module).values())
        return any(not isinstance(value, Module) and getattr(value, "rounds_rows", False) for value in values)

    def parameters(self) -> dict[str, ParameterSpec]:
        """The tensors that this module itself (not its children) reads from a checkpoint."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors that `parameters` declares, all at once.

        Each is this rank's shard, in the dtype of the file and on the host. They are views of a mapped file that goes
        away after the call: what is kept must be copied.
        """
        raise TypeError(f"{type(self).__name__} declares no parameters")


def share(context: ModelContext, count: int, role: Role, things: str, *, replicate: bool = False) -> slice:
    """This rank's part of `count` things, as the device splits them. Raises CannotSplit with what they are in words."""
    rank, ranks = context.communicator.rank, context.communicator.world_size
    held = context.device.shard(count, role, rank, ranks, replicate=replicate)
    if held is None:
        raise CannotSplit(things, ranks)
    return held
