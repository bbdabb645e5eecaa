"""The weight of latent attention as the cmodel computes with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels
from device.cmodel.weights import PANEL, panel_depth
from device.interface import CanonicalWeight, DenseWeight, LatentUpWeight
from device.reference import canonical_shape, dequantize
from device.shape_checks import check_latent_up


class LatentUpPanels:
    """W_UK and W_UV of all heads as dense panels of 32 outputs, the layout of native/kernels/gemm.h.

    up_keys: for each head the panels that take nope_dim inputs to latent_dim outputs. up_values: those that take
    latent_dim inputs to v_dim outputs. Both flat and of the dtype of activations, whatever the weight was.
    """

    def __init__(self, kernels: Kernels, weight: LatentUpWeight) -> None:
        check_latent_up(weight)
        self.dtype, self.heads, self.nope_dim = weight.dtype, weight.heads, weight.nope_dim
        self.out_features, self.in_features = canonical_shape(weight.weight)
        self.v_dim = self.out_features // self.heads - self.nope_dim
        meta = weight.weight.values.is_meta
        sizes = [(self.in_features, self.nope_dim), (self.v_dim, self.in_features)]
        self.up_keys, self.up_values = (
            torch.empty(
                (self.heads, -(-outputs // PANEL) * PANEL * panel_depth(inputs, self.dtype)),
                dtype=self.dtype,
                device="meta" if meta else "cpu",
            )
            for outputs, inputs in sizes
        )
        self.nbytes = self.up_keys.nbytes + self.up_values.nbytes
        if meta:
            return
        for panels in (self.up_keys, self.up_values):
            kernels.prefer_huge_pages(panels.data_ptr(), panels.nbytes)
        for head, values in enumerate(_heads(weight)):
            parts = (values[: self.nope_dim].T, self.up_keys), (values[self.nope_dim :], self.up_values)
            for part, panels in parts:
                outputs, inputs = part.shape
                kernels.pack_linear(
                    dtype=DTYPES[self.dtype],
                    values=part.contiguous(),
                    outputs=outputs,
                    inputs=inputs,
                    packed=panels[head],
                )


def _heads(weight: LatentUpWeight) -> Iterator[Tensor]:
    """W_UK over W_UV of each head, `[nope_dim + v_dim, latent_dim]` in the dtype of activations."""
    size = len(weight.weight.values) // weight.heads
    for head in range(weight.heads):
        part = _rows(weight.weight, slice(head * size, (head + 1) * size))
        yield dequantize(part).to(weight.dtype)


def _rows(weight: CanonicalWeight, rows: slice) -> CanonicalWeight:
    """Some outputs of a weight."""
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.values[rows])
    parts = {name: getattr(weight, name, None) for name in ("values", "scales", "zeros")}
    return replace(weight, **{name: part[rows] for name, part in parts.items() if part is not None})
