"""The operators of `device.interface.Ops`, where each is documented, as commands of the chip.

Shapes are checked; what block tables and slots hold is not, for it lies on the chip already.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from device import shape_checks as checks
from device.interface import (
    Activation,
    AttentionMeta,
    KVCache,
    Ops,
    PackedWeight,
    Rope,
    StepInputs,
    UnsupportedOperator,
)
from device.sample_params import SampleParams, SampleResult
from device.sampling import sample
from device.tpuv7 import commands
from device.tpuv7.chip import Chip
from device.tpuv7.tensors import ChipTensor, empty, gather_rows, on_chip
from device.tpuv7.weights import ChipWeight, PlainWeight

OPERATORS = frozenset({"embedding", "rms_norm", "linear", "gated_mlp", "paged_attention", "sample"})
_ACTIVATIONS = {
    "silu": commands.Activation.SILU,
    "gelu": commands.Activation.GELU,
    "gelu_tanh": commands.Activation.GELU_TANH,
}
_DTYPES = (torch.bfloat16, torch.float16)
MOST_NORM_VALUES = 16384
"""What the local memory holds of a row (kernels/rms_norm.c)."""


class ChipOps:
    """Operators that are queued on one chip. Tensors of the host are copied to it."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip

    def embedding(
        self,
        ids: Tensor,
        table: Tensor | PackedWeight,
        first: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        checks.check_embedding(ids, table)
        rows = table.table() if isinstance(table, PlainWeight) else table
        assert isinstance(rows, Tensor)
        if first is None and not isinstance(ids, ChipTensor):
            checks.check_ids(ids, len(rows))
        return gather_rows(on_chip(self._chip, rows), ids, first or 0)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        checks.check_rms_norm(x, weight, residual)
        x, given = self._activations("rms_norm", x), residual
        if x.shape[-1] > MOST_NORM_VALUES:
            raise UnsupportedOperator(f"tpuv7 norms up to {MOST_NORM_VALUES} values at once, not {x.shape[-1]}")
        heads = x.shape[1] if x.dim() == 3 else 1
        if given is not None:
            given = self._contiguous(self._activations("rms_norm", given))
        out = empty(self._chip, x.shape, x.dtype)
        total = None if given is None else empty(self._chip, x.shape, x.dtype)
        self._chip.add(
            commands.RmsNorm(
                rows=x.shape[0],
                dtype=commands.DTYPES[x.dtype],
                out=out.address,
                sum=0 if total is None else total.address,
                x=x.address,
                residual=0 if given is None else given.address,
                weight=on_chip(self._chip, weight).address,
                heads=heads,
                size=x.shape[-1],
                x_stride=x.stride(0),
                residual_stride=heads * x.shape[-1],
                eps=eps,
            )
        )
        return out, x if total is None else total

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        assert isinstance(weight, ChipWeight)
        checks.check_linear("linear", x, weight, bias, activation)
        if activation is not None:
            raise UnsupportedOperator("tpuv7 has activations in gated MLPs only, not of a plain product")
        return self._linear(self._activations("linear", x), weight, bias, None)

    def gated_mlp(
        self,
        x: Tensor,
        gate_up: PackedWeight,
        down: PackedWeight,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(gate_up, ChipWeight) and isinstance(down, ChipWeight)
        checks.check_gated_mlp(x, gate_up, down, activation, gate_up_bias, down_bias)
        if activation not in _ACTIVATIONS:
            raise UnsupportedOperator(f"tpuv7 has no activation {activation}; there are {', '.join(_ACTIVATIONS)}")
        inner = self._linear(self._activations("gated_mlp", x), gate_up, gate_up_bias, activation)
        return self._linear(inner, down, down_bias, None)

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: KVCache,
        step: AttentionMeta,
        rope: Rope | None,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        checks.check_paged_attention(q, k, v, kv, rope, window)
        widest, group = max(q.shape[2], v.shape[2]), q.shape[1] // k.shape[1]
        if widest > commands.MOST_HEAD_DIM or group > commands.MOST_GROUP_HEADS:
            raise UnsupportedOperator(
                f"tpuv7 attends with heads of up to {commands.MOST_HEAD_DIM} channels, {commands.MOST_GROUP_HEADS} to "
                f"a key, not with {widest} and {group}"
            )
        q, k, v = (self._activations("paged_attention", each) for each in (q, k, v))
        keys, values = on_chip(self._chip, kv.keys), on_chip(self._chip, kv.values)
        if not isinstance(step, StepInputs) or not isinstance(step.input_lengths, ChipTensor):
            raise ValueError("paged_attention: the step was not prepared by this device")
        if len(q) != len(step.slot_mapping):
            raise ValueError(f"paged_attention: {len(q)} tokens do not fit a step of {len(step.slot_mapping)}")
        turns = None if rope is None else step.rotation(rope, cast("Ops", self))
        cos, sin = (0, 0) if turns is None else (on_chip(self._chip, each).address for each in turns)
        shape = {
            "rows": len(q),
            "dtype": commands.DTYPES[q.dtype],
            "keys": keys.address,
            "values": values.address,
            "batch": _layout(step, kv.keys.shape[1]),
            "heads": q.shape[1],
            "kv_heads": k.shape[1],
            "key_dim": q.shape[2],
            "value_dim": v.shape[2],
        }
        rotated = empty(self._chip, q.shape, q.dtype)
        out = empty(self._chip, (*q.shape[:2], v.shape[2]), q.dtype)
        self._chip.add(
            commands.CacheWrite(
                **shape,
                rotated=rotated.address,
                q=q.address,
                k=k.address,
                v=v.address,
                cos=cos,
                sin=sin,
                rotary_dim=0 if turns is None else 2 * turns.cos.shape[1],
                interleaved=rope is not None and rope.interleaved,
                q_stride=q.stride(0),
                k_stride=k.stride(0),
                v_stride=v.stride(0),
            )
        )
        self._chip.add(commands.Attention(**shape, out=out.address, q=rotated.address, window=window or 0, scale=scale))
        return out

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        return sample(logits.to_host() if isinstance(logits, ChipTensor) else logits, params)

    def _linear(
        self, x: ChipTensor, weight: ChipWeight, bias: Tensor | None, activation: Activation | None
    ) -> ChipTensor:
        if weight.order is not None:
            x = self._in_order(x, weight.order)
        outputs = weight.out_features // (2 if activation else 1)
        out = empty(self._chip, (len(x), outputs), x.dtype)
        command = commands.Linear(
            rows=len(x),
            dtype=commands.DTYPES[x.dtype],
            out=out.address,
            x=x.address,
            x_stride=x.stride(0),
            bias=0 if bias is None else on_chip(self._chip, bias).address,
            activation=_ACTIVATIONS[activation] if activation else commands.Activation.NONE,
        )
        weight.fill(command)
        self._chip.add(command)
        return out

    def _in_order(self, x: ChipTensor, order: ChipTensor) -> ChipTensor:
        """The channels of x that a weight multiplies."""
        out = empty(self._chip, (len(x), len(order)), x.dtype)
        self._chip.add(
            commands.Permute(
                rows=len(x),
                dtype=commands.DTYPES[x.dtype],
                out=out.address,
                x=x.address,
                order=order.address,
                columns=len(order),
                channels=x.shape[1],
                x_stride=x.stride(0),
            )
        )
        return out

    def _activations(self, operator: str, x: Tensor) -> ChipTensor:
        """x on the chip, its last dimensions in one piece."""
        if x.dtype not in _DTYPES:
            raise UnsupportedOperator(
                f"tpuv7 computes in bfloat16 and float16, not in {str(x.dtype).removeprefix('torch.')}: --dtype chooses"
            )
        x = on_chip(self._chip, x)
        return x if x[:1].is_contiguous() else self._contiguous(x)

    def _contiguous(self, x: ChipTensor) -> ChipTensor:
        return x if x.is_contiguous() else on_chip(self._chip, x.to_host().contiguous())


def _layout(step: StepInputs, block_size: int) -> commands.BatchLayout:
    addresses = (step.input_lengths, step.cached_lengths, step.block_tables, step.slot_mapping)
    sequences, max_blocks = step.block_tables.shape
    given = [tensor.address if isinstance(tensor, ChipTensor) else 0 for tensor in addresses]
    return commands.BatchLayout(*given, sequences, max_blocks, block_size)
