"""Profiles at the level of operators: each call of `device.ops` is one command."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

from device.interface import CommandRecord, Ops, PackedWeight


class OperatorRecorder:
    """Notes the calls of some operators of `ops` until it is closed. Untimed they cost nothing: it replaces them.

    synchronize waits until the device has done what it was told.
    """

    def __init__(self, ops: Ops, names: Iterable[str], synchronize: Callable[[], None] = lambda: None) -> None:
        self.records: list[CommandRecord] = []
        self._ops = ops
        self._names = tuple(names)
        self._synchronize = synchronize
        self._inside = False
        for name in self._names:
            setattr(ops, name, self._timed(name, getattr(ops, name)))

    def take(self) -> list[CommandRecord]:
        """The records since the last call, in order."""
        records, self.records = self.records, []
        return records

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before

    def close(self) -> None:
        """Give ops its own operators back."""
        for name in self._names:
            delattr(self._ops, name)

    def _timed(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(operator)

        @wraps(operator)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return operator(*args, **kwargs)
            first = len(self.records)
            self._synchronize()
            start = time.monotonic_ns()
            with self.paused():
                result = operator(*args, **kwargs)
                self._synchronize()
            duration = time.monotonic_ns() - start
            # Commands that it consists of are not shown beside it, but know best what they had to do.
            parts = self.records[first:]
            del self.records[first:]
            if parts:
                cost = sum(part.bytes for part in parts), sum(part.operations for part in parts)
            else:
                cost = operator_cost(name, signature.bind(*args, **kwargs).arguments, result)
            self.records.append(CommandRecord(name, start, duration, *cost))
            return result

        return call


class OperatorProfile:
    """What a device inherits to be profiled by its operators, one after the other."""

    ops: Ops
    operators: frozenset[str]
    _recorder: OperatorRecorder | None = None

    def synchronize(self) -> None:
        raise NotImplementedError

    def start_profile(self, max_records: int, mode: int) -> None:
        self.stop_profile()
        self._recorder = self._make_recorder(mode)

    def profile_records(self) -> list[CommandRecord]:
        return self._recorder.take() if self._recorder else []

    def stop_profile(self) -> None:
        if self._recorder:
            self._recorder.close()
        self._recorder = None

    def _make_recorder(self, mode: int) -> OperatorRecorder:
        return OperatorRecorder(self.ops, self.operators, self.synchronize)


def seen_positions(lengths: Iterable[int], cached: Iterable[int], window: int | None) -> tuple[int, int]:
    """Of causal attention: the positions that are read, and the pairs of a new token and one that it sees."""
    read = pairs = 0
    for new, before in zip(lengths, cached, strict=True):
        if window and before + new > window:
            read += min(before + new, new + window - 1)
            # The first tokens may see fewer than a whole window.
            short = max(0, min(new, window - before))
            pairs += short * before + short * (short + 1) // 2 + (new - short) * window
        else:
            read += before + new
            pairs += new * before + new * (new + 1) // 2
    return read, pairs


def operator_cost(name: str, given: Mapping[str, Any], result: Any) -> tuple[int, int]:
    """Bytes and operations of a call of an operator with these arguments, by name."""
    if name in ("paged_attention", "paged_latent_attention"):
        return _attention_cost(given, result)
    moved = sum(_nbytes(value) for key, value in given.items() if key not in ("table", "gate_up", "down"))
    moved += _nbytes(result)
    match name:
        case "embedding":
            return moved + _nbytes(result), 0
        case "linear":
            return moved, 2 * len(given["x"]) * _size(given["weight"])
        case "gated_mlp":
            weights = given["gate_up"], given["down"]
            return moved + sum(map(_nbytes, weights)), 2 * len(given["x"]) * sum(map(_size, weights))
        case "route_experts":
            return moved, 2 * len(given["x"]) * _size(given["router"])
        case "fused_experts":
            experts, chosen = given["experts"], given["ids"]
            active = len(chosen.unique()) * experts.nbytes // experts.experts
            operations = 6 * chosen.numel() * experts.in_features * experts.intermediate
            return moved - experts.nbytes + active, operations
        case "dense_attention":
            _, heads, size = given["q"].shape
            return moved, 4 * heads * size * sum(length * length for length in given["segments"])
        case "rms_norm" | "layer_norm":
            return moved, 4 * given["x"].numel()
    return moved, given["logits"].numel()


def _attention_cost(given: Mapping[str, Any], result: Tensor) -> tuple[int, int]:
    kv, step, q = given["kv"], given["step"], given["q"]
    lengths = step.input_lengths.tolist(), step.cached_lengths.tolist()
    read, pairs = seen_positions(*lengths, given.get("window"))
    tokens, heads, size = result.shape
    position = sum(cache[0, 0].nbytes for cache in (kv.keys, kv.values))
    moved = q.nbytes + result.nbytes + (read + 2 * tokens) * position
    if "latent" not in given:
        return moved, 2 * pairs * heads * (q.shape[2] + size)
    # The latent is key and value, and the products with W_UK and W_UV, maybe that before them, are this operator's too.
    latent, rope = given["latent"].shape[1], given["k_rope"].shape[1]
    ups = [up for up in (given["kv_up"], given.get("q_up")) if up is not None]
    products = 2 * tokens * sum(map(_size, ups))
    return moved + sum(map(_nbytes, ups)), 2 * pairs * heads * (2 * latent + rope) + products


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor | PackedWeight):
        return value.nbytes
    return sum(map(_nbytes, value)) if isinstance(value, tuple) else 0


def _size(weight: PackedWeight) -> int:
    return weight.out_features * weight.in_features
