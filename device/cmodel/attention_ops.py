"""The cmodel's operators of attention on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from device import shape_checks as checks
from device.cmodel.arguments import as_int32, as_rows, as_type
from device.cmodel.kernels import DTYPES, Kernel, Kernels
from device.cmodel.kv_cache import PairedKVCache, is_native_cache
from device.cmodel.latent import LatentUpPanels
from device.interface import AttentionMeta, KVCache, PackedWeight, Rope, Rotation
from device.reference import ReferenceOps


class AttentionOps(ReferenceOps):
    """Attention on the native kernels; the other operators are those of a class that derives from it."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

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
        if not is_native_cache(kv):
            checks.refuse("paged_attention", "the cache does not come from this device's make_kv_cache")
        tokens, heads, head_dim = q.shape
        kv_heads, v_dim = kv.values.shape[2:]
        return self._attend(
            self._kernels.paged_attention,
            (_heads(q), _heads(k), _heads(v)),
            kv,
            step,
            rope,
            torch.empty(tokens, heads, v_dim, dtype=q.dtype),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_dim=v_dim,
            paired=isinstance(kv, PairedKVCache),
            window=window or 0,
            scale=scale,
        )

    def paged_latent_attention(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv: KVCache,
        kv_up: PackedWeight,
        step: AttentionMeta,
        rope: Rope,
        scale: float,
        q_up: PackedWeight | None = None,
    ) -> Tensor:
        assert isinstance(kv_up, LatentUpPanels)
        q = q if q_up is None else self.linear(q, q_up)
        checks.check_latent_attention(q, latent, k_rope, kv, kv_up, rope)
        if q.dtype != kv_up.dtype:
            checks.refuse("paged_latent_attention", "q is {}, kv_up {}", q.dtype, kv_up.dtype)
        if not (kv.keys.is_contiguous() and kv.values.is_contiguous()):
            checks.refuse("paged_latent_attention", "the cache does not come from this device's make_kv_cache")
        return self._attend(
            self._kernels.paged_latent_attention,
            (as_rows(q), as_rows(latent), as_rows(k_rope)),
            kv,
            step,
            rope,
            torch.empty(len(q), kv_up.heads, kv_up.v_dim, dtype=q.dtype),
            heads=kv_up.heads,
            kv_heads=1,
            head_dim=latent.shape[1] + k_rope.shape[1],
            v_dim=latent.shape[1],
            scale=scale,
            nope_dim=kv_up.nope_dim,
            out_dim=kv_up.v_dim,
            up_keys=kv_up.up_keys,
            up_values=kv_up.up_values,
        )

    def dense_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Sequence[int],
        scale: float,
        rotation: Rotation | None = None,
    ) -> Tensor:
        checks.check_segments(q, k, v, segments, rotation)
        q, k, v = _heads(q), _heads(k), _heads(v)
        out = torch.empty(q.shape, dtype=q.dtype)
        turns: dict[str, Any] = {}
        if rotation is not None:
            cos, sin = (as_type(each, torch.float32) for each in rotation)
            turns = {"cos": cos, "sin": sin, "rope_half": rotation.cos.shape[1]}
        self._kernels.dense_attention(
            dtype=DTYPES[q.dtype],
            q=q,
            k=k,
            v=v,
            q_stride=q.stride(0),
            k_stride=k.stride(0),
            v_stride=v.stride(0),
            tokens=q.shape[0],
            heads=q.shape[1],
            head_dim=q.shape[2],
            segments=len(segments),
            lengths=torch.tensor(segments, dtype=torch.int32),
            **turns,
            scale=scale,
            out=out,
        )
        return out

    def _attend(
        self,
        kernel: Kernel,
        qkv: tuple[Tensor, Tensor, Tensor],
        kv: KVCache,
        step: AttentionMeta,
        rope: Rope | None,
        out: Tensor,
        **sizes: Any,
    ) -> Tensor:
        """Call a kernel of attention on q, k and v, whose rows are one piece each. Returns out."""
        (q, k, v), tokens = qkv, len(qkv[0])
        blocks, block_size = kv.keys.shape[:2]
        lengths, cached = as_int32(step.input_lengths), as_int32(step.cached_lengths)
        tables, slots = as_int32(step.block_tables), as_int32(step.slot_mapping)
        try:
            if not (cached.shape == lengths.shape == tables.shape[:1] and slots.shape == (tokens,)):
                checks.refuse(kernel.name, "lengths, block tables and slots do not fit each other")
            kernel(
                dtype=DTYPES[q.dtype],
                q=q,
                k=k,
                v=v,
                q_stride=q.stride(0),
                k_stride=k.stride(0),
                v_stride=v.stride(0),
                tokens=tokens,
                keys=kv.keys,
                values=kv.values,
                blocks=blocks,
                block_size=block_size,
                sequences=lengths.shape[0],
                input_lengths=lengths,
                cached_lengths=cached,
                block_tables=tables,
                table_width=tables.shape[1],
                slots=slots,
                **self._rotation(kernel.name, step, rope, tokens),
                out=out,
                **sizes,
            )
        except ValueError:
            checks.check_step(kernel.name, tokens, kv, step)
            raise
        return out

    def _rotation(self, operator: str, step: AttentionMeta, rope: Rope | None, tokens: int) -> dict[str, Any]:
        if rope is None:
            return {}
        cos, sin = step.rotation(rope, self)
        if len(cos) != tokens:
            checks.refuse(operator, "{} tokens, but rotations {}", tokens, cos)
        return {"cos": cos, "sin": sin, "rope_half": cos.shape[1], "interleaved": rope.interleaved}


def _heads(x: Tensor) -> Tensor:
    """x `[tokens, heads, dim]` with a token's heads side by side; q, k and v are often cut from one tensor."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
