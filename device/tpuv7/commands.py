"""What the host asks of the chip: the structures of kernels/commands.h, where each field is explained."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_uint64
from enum import IntEnum
from typing import ClassVar

import torch

COMMAND_BYTES = 256
MOST_HEAD_DIM, MOST_GROUP_HEADS = 512, 256
"""Attention takes heads of so many channels, and so many query heads of a kv head, at most."""
DTYPES = {torch.float16: 3, torch.bfloat16: 11, torch.float32: 5, torch.int32: 9}
"""The vendor's numbers (data_type_t)."""


class Activation(IntEnum):
    NONE = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3


class Codes(IntEnum):
    """How the values of a weight are stored."""

    PLAIN = 0
    INT4 = 1
    INT8 = 2
    FLOAT8 = 3


class Command(ctypes.Structure):
    """The beginning of each. rows: of the batch; a launch may ask for fewer."""

    OPERATOR: ClassVar[int]
    _fields_ = [("operator", c_int32), ("rows", c_int32), ("dtype", c_int32), ("reserved", c_int32)]


class BatchLayout(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint64) for name in ("input_lengths", "cached_lengths", "block_tables", "slots")],
        *[(name, c_int32) for name in ("sequences", "max_blocks", "block_size", "reserved")],
    ]


class Embedding(Command):
    OPERATOR = 0
    _fields_ = [
        *[(name, c_uint64) for name in ("out", "table", "ids")],
        *[(name, c_int32) for name in ("hidden", "vocab", "first")],
    ]


class RmsNorm(Command):
    OPERATOR = 1
    _fields_ = [
        *[(name, c_uint64) for name in ("out", "sum", "x", "residual", "weight")],
        *[(name, c_int32) for name in ("heads", "size", "x_stride", "residual_stride")],
        ("eps", c_float),
    ]


class Linear(Command):
    OPERATOR = 2
    _fields_ = [
        *[(name, c_uint64) for name in ("out", "x", "weight", "bias")],
        *[(name, c_int32) for name in ("inputs", "outputs", "x_stride", "activation")],
        *[(name, c_int32) for name in ("codes", "row_bytes", "chunk", "group_size", "scale_dtype", "has_zeros")],
    ]


class CacheWrite(Command):
    OPERATOR = 3
    _fields_ = [
        *[(name, c_uint64) for name in ("rotated", "q", "k", "v", "keys", "values", "cos", "sin")],
        ("batch", BatchLayout),
        *[(name, c_int32) for name in ("heads", "kv_heads", "key_dim", "value_dim", "rotary_dim", "interleaved")],
        *[(name, c_int32) for name in ("q_stride", "k_stride", "v_stride")],
    ]


class Attention(Command):
    OPERATOR = 4
    _fields_ = [
        *[(name, c_uint64) for name in ("out", "q", "keys", "values")],
        ("batch", BatchLayout),
        *[(name, c_int32) for name in ("heads", "kv_heads", "key_dim", "value_dim", "window")],
        ("scale", c_float),
    ]


class Permute(Command):
    OPERATOR = 5
    _fields_ = [
        *[(name, c_uint64) for name in ("out", "x", "order")],
        *[(name, c_int32) for name in ("columns", "channels", "x_stride")],
    ]


class Launch(ctypes.Structure):
    """The arguments of the kernel that runs a program. rows: the most that each command works on; 0 for all."""

    _fields_ = [("program", c_uint64), ("accounts", c_uint64), ("count", c_int32), ("rows", c_int32)]


def program(commands: list[Command]) -> bytes:
    """Commands as the chip reads them."""
    for each in commands:
        each.operator = each.OPERATOR
    return b"".join(bytes(each).ljust(COMMAND_BYTES, b"\0") for each in commands)
