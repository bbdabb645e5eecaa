"""The cmodel's operators: on the native kernels, or on torch's own where there is no native library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from device import checks
from device.cmodel.kernels import ACTIVATIONS, BAD_ARGUMENT, DTYPES, NO_MEMORY, Kernels
from device.interface import (
    Activation,
    AttentionMeta,
    KVCache,
    OutOfDeviceMemory,
    PackedWeight,
    Rope,
    SampleParams,
    SampleResult,
)
from device.reference import ReferenceOps, activate

PANEL = 32
"""Outputs that stand side by side in a packed weight: see native/kernels/gemm.h."""


class TorchWeight:
    """A dense weight as torch's own linear reads it, `[out_features, in_features]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class TorchOps(ReferenceOps):
    """What a host without the native library runs on: the reference, with products by torch's own kernels."""

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`."""
        assert isinstance(weight, TorchWeight)
        checks.check_linear("linear", x, weight, bias)
        return F.linear(x, weight.values, bias)

    def gated_mlp(self, x: Tensor, gate_up: PackedWeight, down: PackedWeight, activation: Activation) -> Tensor:
        """`down(activation(gate) * up)`."""
        checks.check_gated_mlp(x, gate_up, down, activation)
        gate, up = self.linear(x, gate_up).float().chunk(2, dim=-1)
        return self.linear((activate(gate, activation) * up).to(x.dtype), down)


class PanelWeight:
    """A dense weight in panels of 32 outputs, the layout of native/kernels/gemm.h, in one flat tensor."""

    def __init__(self, kernels: Kernels, values: Tensor) -> None:
        self.dtype = values.dtype
        self.out_features, self.in_features = values.shape
        depth = _round_up(self.in_features, 32) if values.dtype == torch.bfloat16 else self.in_features
        self.panels = torch.empty(_round_up(self.out_features, PANEL) * depth, dtype=values.dtype)
        self.nbytes = self.panels.nbytes
        kernels.prefer_huge_pages(self.panels.data_ptr(), self.nbytes)
        values = values.contiguous()
        _check(
            "pack",
            kernels.pack_linear(
                DTYPES[values.dtype],
                values.data_ptr(),
                self.out_features,
                self.in_features,
                self.panels.data_ptr(),
            ),
        )


class NativeOps(ReferenceOps):
    """Operators on the native kernels. A row's bits depend on that row alone: see native/kernels/gemm.h.

    Latent attention, dense attention and sigmoid routing are still the reference's, whose last bits may vary with the
    batch.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Root-mean-square normalisation."""
        checks.check_rms_norm(x, weight, residual)
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        weight = weight.contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        total, raised = x, None
        if residual is not None:
            raised, total = residual.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        _check(
            "rms_norm",
            self._kernels.rms_norm(
                *(DTYPES[x.dtype], rows.data_ptr(), rows.stride(0), None if raised is None else raised.data_ptr()),
                *(weight.data_ptr(), DTYPES[weight.dtype], rows.shape[0], rows.shape[1], eps),
                *(y.data_ptr(), None if raised is None else total.data_ptr()),
            ),
        )
        return y, total

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`."""
        checks.check_linear("linear", x, weight, bias)
        return self._linear(x, weight, bias, x.dtype)

    def gated_mlp(self, x: Tensor, gate_up: PackedWeight, down: PackedWeight, activation: Activation) -> Tensor:
        """`down(activation(gate) * up)`."""
        checks.check_gated_mlp(x, gate_up, down, activation)
        intermediate = down.in_features
        inner = torch.empty(x.shape[0], intermediate, dtype=x.dtype)
        if intermediate % PANEL == 0:
            x, packed = _rows(x), _panels(x, gate_up)
            status = self._kernels.gated(
                *(DTYPES[x.dtype], x.data_ptr(), x.stride(0), x.shape[0], x.shape[1]),
                *(packed.data_ptr(), intermediate, ACTIVATIONS[activation], inner.data_ptr()),
            )
        else:
            both = self._linear(x, gate_up, None, torch.float32)
            status = self._kernels.gate(
                *(DTYPES[x.dtype], both.data_ptr(), x.shape[0], intermediate),
                *(ACTIVATIONS[activation], inner.data_ptr()),
            )
        _check("gated_mlp", status)
        return self._linear(inner, down, None, x.dtype)

    def _linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        x, packed = _rows(x), _panels(x, weight)
        if bias is not None:
            bias = bias.to(x.dtype).contiguous()
        y = torch.empty(x.shape[0], weight.out_features, dtype=dtype)
        _check(
            "linear",
            self._kernels.linear(
                *(DTYPES[x.dtype], x.data_ptr(), x.stride(0), x.shape[0], x.shape[1]),
                *(packed.data_ptr(), weight.out_features, None if bias is None else bias.data_ptr()),
                *(y.data_ptr(), DTYPES[dtype]),
            ),
        )
        return y

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: KVCache,
        meta: AttentionMeta,
        rope: Rope | None,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Causal attention over the block table."""
        checks.check_paged_attention(q, k, v, kv, rope, window)
        checks.require(
            is_native_cache(kv), "paged_attention", "the cache does not come from this device's make_kv_cache"
        )
        tokens, heads, head_dim = q.shape
        blocks, block_size, kv_heads, v_dim = kv.values.shape
        q, k, v = _heads(q), _heads(k), _heads(v)
        lengths, cached = _int32(meta.input_lengths), _int32(meta.cached_lengths)
        tables, slots = _int32(meta.block_tables), _int32(meta.slot_mapping)
        cos, sin = (None, None) if rope is None else (rope.cos.contiguous(), rope.sin.contiguous())
        out = torch.empty(tokens, heads, v_dim, dtype=q.dtype)
        status = BAD_ARGUMENT
        if cached.shape == lengths.shape == tables.shape[:1] and slots.shape == (tokens,):
            status = self._kernels.paged_attention(
                *(DTYPES[q.dtype], q.data_ptr(), k.data_ptr(), v.data_ptr()),
                *(q.stride(0), k.stride(0), v.stride(0)),
                *(tokens, heads, kv_heads, head_dim, v_dim),
                *(kv.keys.data_ptr(), kv.values.data_ptr(), blocks, block_size),
                *(lengths.shape[0], lengths.data_ptr(), cached.data_ptr()),
                *(tables.data_ptr(), tables.shape[1], slots.data_ptr()),
                *((None, None, 0, 0) if cos is None or sin is None else (cos.data_ptr(), sin.data_ptr(), *cos.shape)),
                *(rope is not None and rope.interleaved, scale, window or 0, out.data_ptr()),
            )
        if status == BAD_ARGUMENT:
            checks.check_meta("paged_attention", tokens, kv, meta, rope)
        _check("paged_attention", status)
        return out

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        """Choose one token for each row."""
        checks.check_sample(logits, params)
        logits = _rows(logits if logits.dtype in DTYPES else logits.float())
        rows, vocab = logits.shape
        count = params.num_logprobs
        token_ids = torch.empty(rows, dtype=torch.int64)
        result = SampleResult(token_ids)
        if count >= 0:
            result = SampleResult(
                token_ids,
                torch.empty(rows),
                torch.empty(rows, dtype=torch.int64),
                torch.empty(rows, count, dtype=torch.int64),
                torch.empty(rows, count),
            )
        penalties = 0 if params.penalty_ids is None else params.penalty_ids.numel()
        biases = 0 if params.bias_ids is None else params.bias_ids.numel()
        given = {name: _typed(getattr(params, name), dtype) for name, dtype in _SAMPLE_DTYPES.items()}
        pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in given.items()}
        _check(
            "sample",
            self._kernels.sample(
                *(DTYPES[logits.dtype], logits.data_ptr(), logits.stride(0), rows, vocab),
                *(pointers[name] for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")),
                *(pointers[name] for name in ("repetition", "presence", "frequency")),
                *(pointers[name] for name in ("penalty_rows", "penalty_ids", "output_counts")),
                penalties,
                *(pointers[name] for name in ("bias_rows", "bias_ids", "bias_values")),
                *(biases, pointers["mask"], count),
                *(
                    None if tensor is None else tensor.data_ptr()
                    for tensor in (result.token_ids, result.logprobs, result.ranks, result.top_ids, result.top_logprobs)
                ),
            ),
        )
        return result


_SAMPLE_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
    "positions": torch.int64,
    "repetition": torch.float32,
    "presence": torch.float32,
    "frequency": torch.float32,
    "penalty_rows": torch.int64,
    "penalty_ids": torch.int64,
    "output_counts": torch.int32,
    "bias_rows": torch.int64,
    "bias_ids": torch.int64,
    "bias_values": torch.float32,
    "mask": torch.int32,
}


def native_cache(
    blocks: int, block_size: int, kv_heads: int, head_dims: tuple[int, int], dtype: torch.dtype
) -> KVCache:
    """A cache whose keys lie `[blocks, kv_heads, head_dim, block_size]` in memory, so that a kernel reads one channel
    of many positions at once, and whose values lie `[blocks, kv_heads, block_size, head_dim]`."""
    keys = torch.empty(blocks, kv_heads, head_dims[0], block_size, dtype=dtype)
    values = torch.empty(blocks, kv_heads, block_size, head_dims[1], dtype=dtype)
    return KVCache(keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3))


def is_native_cache(kv: KVCache) -> bool:
    """Whether a cache lies in memory as `native_cache` makes it."""
    _, block_size, heads, key_dim = kv.keys.shape
    value_dim = kv.values.shape[3]
    return kv.keys.stride() == (heads * key_dim * block_size, 1, key_dim * block_size, block_size) and (
        kv.values.stride() == (heads * block_size * value_dim, value_dim, block_size * value_dim, 1)
    )


def _typed(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _int32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.int32 and tensor.is_contiguous() else tensor.int().contiguous()


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _heads(x: Tensor) -> Tensor:
    """x `[tokens, heads, dim]` with a token's heads side by side; q, k and v are often cut from one tensor."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _panels(x: Tensor, weight: PackedWeight) -> Tensor:
    assert isinstance(weight, PanelWeight)
    checks.require(weight.dtype == x.dtype, "linear", f"x is {x.dtype}, the weight {weight.dtype}")
    return weight.panels


def _check(operator: str, status: int) -> None:
    checks.require(status != BAD_ARGUMENT, operator, "the arguments do not fit each other")
    if status == NO_MEMORY:
        raise OutOfDeviceMemory(f"{operator}: no memory for intermediate results")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
