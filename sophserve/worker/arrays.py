"""Arrays as tensors."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"i": torch.int32, "q": torch.int64, "f": torch.float32}


def as_tensor(values: array[Any]) -> Tensor:
    """The numbers of an array, which must not grow any more, as a tensor that shares their memory."""
    dtype = _DTYPES[values.typecode]
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
