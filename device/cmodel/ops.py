"""The cmodel's operators on the native kernels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from device import shape_checks as checks
from device.cmodel.experts import ExpertPanels
from device.cmodel.kernels import ACTIVATIONS, DTYPES, SCORINGS, Kernel, Kernels
from device.cmodel.kv_cache import PairedKVCache, is_native_cache
from device.cmodel.latent import LatentUpPanels
from device.cmodel.weights import PANEL, PanelWeight, QuantizedWeight, TorchWeight
from device.interface import Activation, AttentionMeta, KVCache, PackedWeight, Rope
from device.reference import ReferenceOps, activate
from device.sample_params import SampleParams, SampleResult


class NativeOps(ReferenceOps):
    """Operators on the native kernels. A row's bits depend on that row alone: see native/kernels/gemm.h.

    Dense attention is still the reference's, whose last bits may vary with the batch.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def embedding(self, ids: Tensor, table: Tensor | PackedWeight, first: int | None = None) -> Tensor:
        checks.check_embedding(ids, table)
        if isinstance(table, TorchWeight):
            table = table.values
        if isinstance(table, Tensor):
            values, (rows, size) = table.contiguous(), table.shape
            layout = {}
        else:
            assert isinstance(table, PanelWeight)
            values, rows, size = table.panels, table.out_features, table.in_features
            layout = {"piece_bytes": table.piece * values.itemsize, "pieces": table.depth // table.piece}
        out = torch.empty(len(ids), size, dtype=values.dtype)
        try:
            self._kernels.embedding(
                ids=_int32(ids),
                rows=len(ids),
                table=values,
                table_rows=rows,
                row_bytes=size * values.itemsize,
                first=first or 0,
                partial=first is not None,
                out=out,
                **layout,
            )
        except ValueError:
            checks.check_ids(ids, rows)
            raise
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        checks.check_rms_norm(x, weight, residual)
        # The heads of q or k, cut from a wider tensor, stand together; other rows stand alone.
        rows = x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        weight = weight.contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        total = None if residual is None else torch.empty(x.shape, dtype=x.dtype)
        self._kernels.rms_norm(
            dtype=DTYPES[x.dtype],
            x=rows,
            x_stride=rows.stride(0),
            heads=rows.shape[1],
            head_stride=rows.stride(1),
            residual=None if residual is None else residual.contiguous(),
            weight=weight,
            weight_dtype=DTYPES[weight.dtype],
            rows=rows.shape[0] * rows.shape[1],
            size=rows.shape[2],
            eps=eps,
            y=y,
            total=total,
        )
        return y, x if total is None else total

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        checks.check_linear("linear", x, weight, bias, activation)
        if activation is not None:
            return activate(self._linear(x, weight, bias, torch.float32), activation).to(x.dtype)
        return self._linear(x, weight, bias, x.dtype)

    def gated_mlp(
        self,
        x: Tensor,
        gate_up: PackedWeight,
        down: PackedWeight,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        checks.check_gated_mlp(x, gate_up, down, activation, gate_up_bias, down_bias)
        intermediate = down.in_features
        if gate_up_bias is not None or down_bias is not None or activation == "quick_gelu":
            gate, up = self._linear(x, gate_up, gate_up_bias, torch.float32).chunk(2, dim=-1)
            return self._linear((activate(gate, activation) * up).to(x.dtype), down, down_bias, x.dtype)
        if intermediate % PANEL == 0:
            inner = self._linear(x, gate_up, None, x.dtype, activation)
        else:
            both = self._linear(x, gate_up, None, torch.float32)
            inner = torch.empty(x.shape[0], intermediate, dtype=x.dtype)
            self._kernels.gate(
                dtype=DTYPES[x.dtype],
                gate_up=both,
                rows=x.shape[0],
                intermediate=intermediate,
                activation=ACTIVATIONS[activation],
                inner=inner,
            )
        return self._linear(inner, down, None, x.dtype)

    def route_experts(
        self,
        x: Tensor,
        router: PackedWeight,
        top_k: int,
        scoring: Literal["softmax", "sigmoid"],
        *,
        renormalize: bool,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        checks.check_route_experts(x, router, top_k, scoring, groups, top_groups, bias)
        logits = self._linear(x, router, None, torch.float32)
        ids, weights = torch.empty(len(x), top_k, dtype=torch.int32), torch.empty(len(x), top_k)
        self._kernels.route_experts(
            logits=logits,
            rows=len(x),
            experts=router.out_features,
            top_k=top_k,
            scoring=SCORINGS[scoring],
            groups=groups,
            top_groups=top_groups,
            renormalize=renormalize,
            scale=scale,
            bias=_typed(bias, torch.float32),
            ids=ids,
            weights=weights,
        )
        return ids, weights

    def fused_experts(
        self,
        x: Tensor,
        experts: PackedWeight,
        ids: Tensor,
        weights: Tensor,
        activation: Activation,
        shared: Tensor | None = None,
        shared_logits: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(experts, ExpertPanels)
        checks.check_fused_experts(x, experts, ids, weights, activation, shared, shared_logits)
        for part in (experts.gate_up, experts.down):
            _check_dtype("fused_experts", x, part)
        x = _rows(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        try:
            self._kernels.fused_experts(
                dtype=DTYPES[x.dtype],
                x=x,
                x_stride=x.stride(0),
                rows=len(x),
                hidden=x.shape[1],
                intermediate=experts.intermediate,
                experts=experts.experts,
                top_k=ids.shape[1],
                ids=_int32(ids),
                weights=_typed(weights, torch.float32),
                **experts.gate_up.fields("gate_up_"),
                **experts.down.fields("down_"),
                activation=ACTIVATIONS[activation],
                shared=None if shared is None else shared.contiguous(),
                shared_logits=None if shared_logits is None else shared_logits.contiguous(),
                out=out,
            )
        except ValueError:
            checks.check_chosen(ids, experts)
            raise
        return out

    def _linear(
        self,
        x: Tensor,
        weight: PackedWeight,
        bias: Tensor | None,
        dtype: torch.dtype,
        activation: Activation | None = None,
    ) -> Tensor:
        """The product, in dtype; with an activation, that of its first half times its second half."""
        assert isinstance(weight, PanelWeight | QuantizedWeight)
        _check_dtype("linear", x, weight)
        x = _rows(x)
        width = weight.out_features if activation is None else weight.out_features // 2
        y = torch.empty(x.shape[0], width, dtype=dtype)
        self._kernels.linear(
            dtype=DTYPES[x.dtype],
            x=x,
            x_stride=x.stride(0),
            rows=x.shape[0],
            outputs=weight.out_features,
            **weight.fields(),
            bias=None if bias is None else bias.to(x.dtype).contiguous(),
            y=y,
            y_dtype=DTYPES[dtype],
            gated=activation is not None,
            activation=0 if activation is None else ACTIVATIONS[activation],
        )
        return y

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
            (_rows(q), _rows(latent), _rows(k_rope)),
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
        lengths, cached = _int32(step.input_lengths), _int32(step.cached_lengths)
        tables, slots = _int32(step.block_tables), _int32(step.slot_mapping)
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

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        checks.check_sample(logits, params)
        logits = _rows(logits if logits.dtype in DTYPES else logits.float())
        rows, vocab = logits.shape
        count = params.num_logprobs
        result = SampleResult(torch.empty(rows, dtype=torch.int64))
        if count >= 0:
            result = SampleResult(
                result.token_ids,
                torch.empty(rows),
                torch.empty(rows, dtype=torch.int64),
                torch.empty(rows, count, dtype=torch.int64),
                torch.empty(rows, count),
            )
        self._kernels.sample(
            dtype=DTYPES[logits.dtype],
            logits=logits,
            stride=logits.stride(0),
            rows=rows,
            vocab=vocab,
            penalties=0 if params.penalty_ids is None else params.penalty_ids.numel(),
            biases=0 if params.bias_ids is None else params.bias_ids.numel(),
            num_logprobs=count,
            **{name: _typed(getattr(params, name), dtype) for dtype, names in _SAMPLED.items() for name in names},
            **vars(result),
        )
        return result


# The tensors of SampleParams by what the kernel takes.
_SAMPLED = {
    torch.float32: ("temperature", "top_p", "min_p", "repetition", "presence", "frequency", "bias_values"),
    torch.int32: ("top_k", "output_counts", "mask"),
    torch.int64: ("seeds", "positions", "penalty_rows", "penalty_ids", "bias_rows", "bias_ids"),
}


def _typed(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # Asked first: a conversion that does nothing costs microseconds all the same.
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()


def _int32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.int32 and tensor.is_contiguous() else tensor.int().contiguous()


def _check_dtype(operator: str, x: Tensor, weight: PanelWeight | QuantizedWeight) -> None:
    if isinstance(weight, PanelWeight) and weight.dtype not in (x.dtype, torch.float32):
        checks.refuse(operator, "x is {}, the weight {}", x.dtype, weight.dtype)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _heads(x: Tensor) -> Tensor:
    """x `[tokens, heads, dim]` with a token's heads side by side; q, k and v are often cut from one tensor."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
