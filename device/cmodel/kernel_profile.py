"""Profiles of the cmodel: every kernel is one command, called from Python or from a list of commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ctypes import Array, c_int32, c_int64
from itertools import pairwise
from typing import Any

from device.cmodel.arguments import Arguments
from device.cmodel.capture import Calls, CommandList
from device.cmodel.kernels import DTYPES, Kernel
from device.cmodel.ops import NativeOps
from device.cmodel.weights import CODES
from device.interface import CommandRecord, Ops
from device.operator_profile import OperatorRecorder, seen_positions

_ITEM_BYTES = {number: dtype.itemsize for dtype, number in DTYPES.items()}
_CODE_BITS = {CODES[4]: 4, CODES["float8"]: 8, CODES[8]: 8}


class KernelProfile(OperatorRecorder):
    """Notes the kernels that run in this process, or operators of a device without kernels, until it is closed."""

    def __init__(self, ops: Ops, operators: Iterable[str], detailed: bool) -> None:
        super().__init__(ops, [] if isinstance(ops, NativeOps) else operators)
        self._detailed = detailed
        self._replays: list[tuple[Calls, Array[c_int64]]] = []
        Kernel.intercept = self._call
        CommandList.on_replay = self._note_replay

    def take(self) -> list[CommandRecord]:
        records = super().take()
        for calls, times in self._replays:
            for (kernel, arguments), (start, end) in zip(calls, pairwise(times), strict=False):
                records.append(self._record(kernel, arguments, start, end))
        self._replays.clear()
        return sorted(records, key=lambda record: record.start_ns)

    def close(self) -> None:
        super().close()
        Kernel.intercept = CommandList.on_replay = None

    def _call(self, kernel: Kernel, arguments: Arguments) -> int:
        start = time.monotonic_ns()
        status = kernel.run(arguments)
        self.records.append(self._record(kernel, arguments, start, time.monotonic_ns()))
        return status

    def _note_replay(self, calls: Calls, times: Array[c_int64]) -> None:
        # What each command had to do is worked out after the step, not within it.
        self._replays.append((calls, times))

    def _record(self, kernel: Kernel, arguments: Arguments, start: int, end: int) -> CommandRecord:
        cost = _COSTS[kernel.name](arguments)
        detail = _detail(arguments) if self._detailed else ""
        return CommandRecord(_label(kernel.name, arguments), start, end - start, *cost, detail)


def _label(name: str, a: Any) -> str:
    if name == "linear":
        quantized, shape = a.weight_type in _CODE_BITS, f"{a.outputs}x{a.inputs}"
    elif name == "fused_experts":
        quantized, shape = a.gate_up_weight_type in _CODE_BITS, f"{a.experts}x{a.intermediate}x{a.hidden}"
    else:
        return name
    return f"{'quantized_' if quantized else ''}{name} {shape}"


def _detail(arguments: Arguments) -> str:
    numbers = [name for name, kind in type(arguments)._fields_ if kind is c_int64]  # type: ignore[misc]
    return " ".join(f"{name}={getattr(arguments, name)}" for name in numbers if getattr(arguments, name))


def _weight_bytes(a: Any, outputs: int, prefix: str = "") -> int:
    """Of a packed weight, without what fills it up. prefix: what the names of its fields begin with."""
    kind, inputs = getattr(a, f"{prefix}weight_type"), getattr(a, f"{prefix}inputs")
    bits = _CODE_BITS.get(kind)
    if bits is None:
        return outputs * inputs * _ITEM_BYTES[kind]
    scale = _ITEM_BYTES[getattr(a, f"{prefix}scales_dtype")] + (1 if getattr(a, f"{prefix}shifts") else 0)
    scales = -(-inputs // getattr(a, f"{prefix}group")) * scale
    return outputs * (inputs * bits // 8 + scales) + (4 * inputs if getattr(a, f"{prefix}order") else 0)


def _linear(a: Any) -> tuple[int, int]:
    item, width = _ITEM_BYTES[a.dtype], a.outputs // 2 if a.gated else a.outputs
    activations = a.rows * (a.inputs * item + width * _ITEM_BYTES[a.y_dtype])
    bias = a.outputs * item if a.bias else 0
    return activations + _weight_bytes(a, a.outputs) + bias, 2 * a.rows * a.inputs * a.outputs


def _route_experts(a: Any) -> tuple[int, int]:
    return a.rows * (4 * a.experts + 8 * a.top_k) + (4 * a.experts if a.bias else 0), a.rows * a.experts


def _fused_experts(a: Any) -> tuple[int, int]:
    # Of the weights those of experts that a token goes through.
    chosen = a.rows * a.top_k
    active = len(set((c_int32 * chosen).from_address(a.ids))) if chosen else 0
    gate_up = _weight_bytes(a, 2 * a.intermediate, "gate_up_")
    down = _weight_bytes(a, a.hidden, "down_")
    rows = a.rows * a.hidden * _ITEM_BYTES[a.dtype] * (3 if a.shared else 2)
    return active * (gate_up + down) + rows + 8 * chosen, 6 * chosen * a.hidden * a.intermediate


def _rms_norm(a: Any) -> tuple[int, int]:
    values = a.rows * a.size
    tensors = 4 if a.residual else 2
    return values * tensors * _ITEM_BYTES[a.dtype] + a.size * _ITEM_BYTES[a.weight_dtype], 4 * values


def _layer_norm(a: Any) -> tuple[int, int]:
    values = a.rows * a.size
    return 2 * values * _ITEM_BYTES[a.dtype] + 2 * a.size * _ITEM_BYTES[a.weight_dtype], 7 * values


def _paged_attention(a: Any) -> tuple[int, int]:
    numbers = c_int32 * a.sequences
    lengths, cached = numbers.from_address(a.input_lengths), numbers.from_address(a.cached_lengths)
    read, pairs = seen_positions(lengths, cached, a.window or None)
    # New keys and values come in and go to the cache; q comes in, the result goes out.
    position = a.kv_heads * (a.head_dim + a.v_dim)
    moved = (read + 2 * a.tokens) * position + a.tokens * a.heads * (a.head_dim + a.v_dim)
    return moved * _ITEM_BYTES[a.dtype], 2 * pairs * a.heads * (a.head_dim + a.v_dim)


def _paged_latent_attention(a: Any) -> tuple[int, int]:
    numbers = c_int32 * a.sequences
    lengths, cached = numbers.from_address(a.input_lengths), numbers.from_address(a.cached_lengths)
    read, pairs = seen_positions(lengths, cached, None)
    # A position is a latent, which is key and value, and a rotated key. W_UK and W_UV are read once, and each token is
    # multiplied with both.
    up = a.heads * (a.nope_dim + a.out_dim) * a.v_dim
    token = a.heads * (a.nope_dim + a.head_dim - a.v_dim + a.out_dim)
    moved = (read + 2 * a.tokens) * a.head_dim + a.tokens * token + up
    operations = 2 * pairs * a.heads * (a.head_dim + a.v_dim) + 2 * a.tokens * up
    return moved * _ITEM_BYTES[a.dtype], operations


def _dense_attention(a: Any) -> tuple[int, int]:
    pairs = sum(length * length for length in (c_int32 * a.segments).from_address(a.lengths))
    width = a.heads * a.head_dim
    turns = 8 * a.tokens * a.rope_half
    return 4 * a.tokens * width * _ITEM_BYTES[a.dtype] + turns, 4 * pairs * width


def _code_rows(a: Any) -> tuple[int, int]:
    return a.rows * (4 + _weight_bytes(a, 1) + a.width * _ITEM_BYTES[a.dtype]), 2 * a.rows * a.width


def _packing(a: Any) -> tuple[int, int]:
    return sum(tensor.nbytes for tensor in a.tensors), 0


def _sample(a: Any) -> tuple[int, int]:
    mask = a.rows * -(-a.vocab // 32) * 4 if a.mask else 0
    return a.rows * a.vocab * _ITEM_BYTES[a.dtype] + mask, a.rows * a.vocab


# Bytes and operations of one call of a kernel.
_COSTS: dict[str, Callable[[Any], tuple[int, int]]] = {
    "pack_linear": _packing,
    "pack_codes": _packing,
    "linear": _linear,
    "gate": lambda a: (a.rows * a.intermediate * (8 + _ITEM_BYTES[a.dtype]), 2 * a.rows * a.intermediate),
    "route_experts": _route_experts,
    "fused_experts": _fused_experts,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "paged_attention": _paged_attention,
    "paged_latent_attention": _paged_latent_attention,
    "dense_attention": _dense_attention,
    "sample": _sample,
    "embedding": lambda a: (a.rows * (4 + 2 * a.row_bytes), 0),
    "code_rows": _code_rows,
    # Of collectives what this rank gives and takes; a group's size is not among their parameters.
    "all_reduce": lambda a: (2 * a.size * _ITEM_BYTES[a.dtype], a.size),
    "all_gather": lambda a: (2 * a.rows * a.row_bytes, 0),
    "broadcast": lambda a: (a.bytes, 0),
}
