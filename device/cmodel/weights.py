"""Weights in the layouts that the cmodel computes with."""

from __future__ import annotations

import torch
from torch import Tensor

from device.cmodel.kernels import DTYPES, Kernels, check_status

PANEL = 32
"""Outputs that stand side by side in a packed weight: see native/kernels/gemm.h."""


class TorchWeight:
    """A dense weight as torch's own linear reads it, `[out_features, in_features]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.out_features, self.in_features = values.shape
        self.nbytes = values.nbytes


class PanelWeight:
    """A dense weight in panels of 32 outputs, the layout of native/kernels/gemm.h, in one flat tensor.

    panels: `[panels, depth / piece, 32, piece]`: depth inputs, those beyond in_features 0, piece of them side by side.
    """

    def __init__(self, kernels: Kernels, values: Tensor) -> None:
        self.dtype = values.dtype
        self.out_features, self.in_features = values.shape
        self.piece = 2 if values.dtype == torch.bfloat16 else 1
        self.depth = _round_up(self.in_features, 32) if values.dtype == torch.bfloat16 else self.in_features
        self.panels = torch.empty(_round_up(self.out_features, PANEL) * self.depth, dtype=values.dtype)
        self.nbytes = self.panels.nbytes
        kernels.prefer_huge_pages(self.panels.data_ptr(), self.nbytes)
        check_status(
            "pack",
            kernels.pack_linear(
                dtype=DTYPES[values.dtype],
                values=values.contiguous(),
                outputs=self.out_features,
                inputs=self.in_features,
                packed=self.panels,
            ),
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
