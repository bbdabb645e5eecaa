"""How near a device must come to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}
"""Of the largest value, by dtype."""


def assert_close(result: Tensor, expected: Tensor, case: object = "") -> None:
    """case: said of what is not close."""
    assert result.dtype == expected.dtype and result.shape == expected.shape, case
    if not expected.numel():
        return
    worst = float((result.float() - expected.float()).abs().max())
    scale = float(expected.float().abs().max())
    assert worst <= TOLERANCE[expected.dtype] * max(scale, 1e-3), f"{case}: off by {worst}, at a scale of {scale}"
