"""The cmodel's operators on the native kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from device import shape_checks as checks
from device.cmodel.arguments import as_int32, as_rows, as_type
from device.cmodel.attention_ops import AttentionOps
from device.cmodel.experts import ExpertPanels
from device.cmodel.kernels import ACTIVATIONS, DTYPES, SCORINGS
from device.cmodel.weights import PANEL, PanelWeight, QuantizedWeight, TorchWeight
from device.interface import Activation, PackedWeight
from device.sample_params import SampleParams, SampleResult


class NativeOps(AttentionOps):
    """Operators on the native kernels. A row's bits depend on that row alone: see native/kernels/gemm.h."""

    def embedding(
        self,
        ids: Tensor,
        table: Tensor | PackedWeight,
        first: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        checks.check_embedding(ids, table)
        if isinstance(table, QuantizedWeight):
            return self._code_rows(ids, table, first, checks.check_rows_dtype(dtype))
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
                ids=as_int32(ids),
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

    def _code_rows(self, ids: Tensor, table: QuantizedWeight, first: int | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty(len(ids), table.in_features, dtype=dtype)
        try:
            self._kernels.code_rows(
                ids=as_int32(ids),
                rows=len(ids),
                outputs=table.out_features,
                **table.fields(),
                first=first or 0,
                partial=first is not None,
                dtype=DTYPES[dtype],
                out=out,
                width=table.in_features,
            )
        except ValueError:
            checks.check_ids(ids, table.out_features)
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

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        checks.check_layer_norm(x, weight, bias)
        rows = as_rows(x.reshape(-1, x.shape[-1]))
        # The kernel takes both in one dtype.
        dtype = weight.dtype if weight.dtype == bias.dtype else torch.float32
        y = torch.empty(x.shape, dtype=x.dtype)
        self._kernels.layer_norm(
            dtype=DTYPES[x.dtype],
            x=rows,
            x_stride=rows.stride(0),
            weight=as_type(weight, dtype),
            bias=as_type(bias, dtype),
            weight_dtype=DTYPES[dtype],
            rows=rows.shape[0],
            size=rows.shape[1],
            eps=eps,
            y=y,
        )
        return y

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        checks.check_linear("linear", x, weight, bias, activation)
        return self._linear(x, weight, bias, x.dtype, activation)

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
        if intermediate % PANEL == 0:
            inner = self._linear(x, gate_up, gate_up_bias, x.dtype, activation, gated=True)
        else:
            both = self._linear(x, gate_up, gate_up_bias, torch.float32)
            inner = torch.empty(x.shape[0], intermediate, dtype=x.dtype)
            self._kernels.gate(
                dtype=DTYPES[x.dtype],
                gate_up=both,
                rows=x.shape[0],
                intermediate=intermediate,
                activation=ACTIVATIONS[activation],
                inner=inner,
            )
        return self._linear(inner, down, down_bias, x.dtype)

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
            bias=as_type(bias, torch.float32),
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
        x = as_rows(x)
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
                ids=as_int32(ids),
                weights=as_type(weights, torch.float32),
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
        *,
        gated: bool = False,
    ) -> Tensor:
        """The activation of the product, in dtype; gated: that of its first half times its second half."""
        assert isinstance(weight, PanelWeight | QuantizedWeight)
        _check_dtype("linear", x, weight)
        x = as_rows(x)
        width = weight.out_features // 2 if gated else weight.out_features
        y = torch.empty(x.shape[0], width, dtype=dtype)
        self._kernels.linear(
            dtype=DTYPES[x.dtype],
            x=x,
            x_stride=x.stride(0),
            rows=x.shape[0],
            outputs=weight.out_features,
            **weight.fields(),
            bias=as_type(bias, x.dtype),
            y=y,
            y_dtype=DTYPES[dtype],
            gated=gated,
            activation=ACTIVATIONS[activation],
        )
        return y

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        checks.check_sample(logits, params)
        logits = as_rows(logits if logits.dtype in DTYPES else logits.float())
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
            **{name: as_type(getattr(params, name), dtype) for dtype, names in _SAMPLED.items() for name in names},
            **vars(result),
        )
        return result


# The tensors of SampleParams by what the kernel takes.
_SAMPLED = {
    torch.float32: ("temperature", "top_p", "min_p", "repetition", "presence", "frequency", "bias_values"),
    torch.int32: ("top_k", "output_counts", "mask"),
    torch.int64: ("seeds", "positions", "penalty_rows", "penalty_ids", "bias_rows", "bias_ids"),
}


def _check_dtype(operator: str, x: Tensor, weight: PanelWeight | QuantizedWeight) -> None:
    if isinstance(weight, PanelWeight) and weight.dtype not in (x.dtype, torch.float32):
        checks.refuse(operator, "x is {}, the weight {}", x.dtype, weight.dtype)
