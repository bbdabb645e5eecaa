"""Records the kernels that a function calls, and runs them again as one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from ctypes import Array, Structure, addressof, byref, c_int64, c_void_p
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from device.cmodel.arguments import Arguments
from device.cmodel.kernels import Kernel


class _Command(Structure):
    _fields_ = (("kernel", c_void_p), ("arguments", c_void_p))


class _Count(Structure):
    _fields_ = (("field", c_void_p), ("per_row", c_int64))


class _RunCommands(Structure):
    _fields_ = (
        ("commands", c_void_p),
        ("size", c_int64),
        ("counts", c_void_p),
        ("count_size", c_int64),
        ("rows", c_int64),
        ("done", c_void_p),
    )


Calls = list[tuple[Kernel, Arguments]]


class CommandList:
    """The kernels that fn calls on tensors of `rows` rows, for any number of rows up to that.

    Intermediate results have room for `rows` rows, and are kept.
    on_replay: told the commands and the times between them, in ns of the monotonic clock; see kernel_profile.py.
    """

    on_replay: ClassVar[Callable[[Calls, Array[c_int64]], None] | None] = None

    def __init__(self, library: ctypes.CDLL, calls: Calls, rows: int, result: Tensor) -> None:
        self._run = library.cmodel_run_commands
        self._time = library.cmodel_time_commands
        self._calls = calls
        self._result = result
        self._done = c_int64()
        commands = [_Command(kernel.address, addressof(arguments)) for kernel, arguments in calls]
        counts = list(_counts((arguments for _, arguments in calls), rows))
        self._arrays = (_Command * len(commands))(*commands), (_Count * len(counts))(*counts)
        self._arguments = _RunCommands(
            addressof(self._arrays[0]), len(commands), addressof(self._arrays[1]), len(counts), 0, addressof(self._done)
        )

    def __call__(self, rows: int) -> Tensor:
        """Run them; returns the first `rows` rows of the result, which the next call overwrites."""
        self._arguments.rows = rows
        if CommandList.on_replay is None:
            status = self._run(byref(self._arguments))
        else:
            times = (c_int64 * (len(self._calls) + 1))()
            status = self._time(byref(self._arguments), times)
            CommandList.on_replay(self._calls[: self._done.value], times)
        if status:
            self._calls[self._done.value][0].check(status)
        return self._result[:rows]


def record(library: ctypes.CDLL, fn: Callable[[], Tensor], rows: int) -> CommandList | None:
    """Record what fn calls, without running it. None if some of its work is not a kernel's, or not done row by row."""
    calls: Calls = []

    def keep(kernel: Kernel, arguments: Arguments) -> int:
        calls.append((kernel, arguments))
        return 0

    before, Kernel.intercept = Kernel.intercept, keep
    try:
        with _ViewsOnly() as watch:
            result = fn()
    finally:
        Kernel.intercept = before
    if watch.computes or any(_per_row(arguments, rows) is None for _, arguments in calls):
        return None
    return CommandList(library, calls, rows, result)


def _per_row(arguments: Arguments, rows: int) -> dict[str, int] | None:
    """By field how much of it there is for each row, or None if it is not proportional."""
    counts = {name: getattr(arguments, name) for name in arguments.row_counts}
    if not counts or any(count % rows for count in counts.values()):
        return None
    return {name: count // rows for name, count in counts.items()}


def _counts(calls: Iterable[Arguments], rows: int) -> Iterator[_Count]:
    for arguments in calls:
        for name, per_row in (_per_row(arguments, rows) or {}).items():
            yield _Count(addressof(arguments) + getattr(type(arguments), name).offset, per_row)


class _ViewsOnly(TorchDispatchMode):
    """Notes whether torch itself computes something: more than a view, or memory for a kernel to write to."""

    def __init__(self) -> None:
        super().__init__()
        self.computes = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes a second, to keep it away from this class.
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        inputs = {tensor.untyped_storage().data_ptr() for tensor in given}
        makes_memory = function.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.empty_strided)
        is_view = not function._schema.is_mutable and all(
            isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() in inputs for leaf in tree_leaves(result)
        )
        self.computes |= not (makes_memory or is_view)
        return result
