"""The parameters of the kernels: the structures of native/kernels/*.cpp, field for field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any, ClassVar

from torch import Tensor


class Arguments(Structure):
    """Parameters of one call. A tensor is passed by its address and kept alive with them; None is a null address.

    row_counts: the fields that grow with the rows of a batch, of kernels that take each row by itself.
    """

    row_counts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        self.tensors = []
        for name, value in values.items():
            if isinstance(value, Tensor):
                self.tensors.append(value)
                values[name] = value.data_ptr()
        super().__init__(**values)


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names.split()]


def _integers(names: str) -> list[tuple[str, type]]:
    return [(name, c_int64) for name in names.split()]


class Embedding(Arguments):
    """embedding.cpp."""

    row_counts = ("rows",)
    _fields_ = (
        *_pointers("ids"),
        *_integers("rows"),
        *_pointers("table"),
        *_integers("table_rows row_bytes piece_bytes pieces first partial"),
        *_pointers("out"),
    )


class Gather(Arguments):
    """gather.cpp."""

    row_counts = ("rows",)
    _fields_ = (
        *_pointers("x"),
        *_integers("x_stride rows element_bytes"),
        *_pointers("order"),
        *_integers("columns"),
        *_pointers("out"),
    )


class PackLinear(Arguments):
    """linear.cpp."""

    _fields_ = _integers("dtype") + _pointers("values") + _integers("outputs inputs") + _pointers("packed")


class Linear(Arguments):
    """linear.h."""

    row_counts = ("rows",)
    _fields_ = (
        *_integers("dtype"),
        *_pointers("x"),
        *_integers("x_stride rows inputs outputs"),
        *_pointers("weight bias y"),
        *_integers("y_dtype gated activation"),
    )


class PackCodes(Arguments):
    """quantized.cpp."""

    _fields_ = (
        *_integers("codes"),
        *_pointers("values"),
        *_integers("outputs inputs"),
        *_pointers("packed"),
        *_integers("group"),
        *_pointers("scales"),
    )


class QuantizedLinear(Arguments):
    """quantized.cpp."""

    row_counts = ("rows",)
    _fields_ = (
        *Linear._fields_,
        *_integers("codes group"),
        *_pointers("scales"),
        *_integers("scales_dtype"),
        *_pointers("shifts"),
    )


class Gate(Arguments):
    """linear.cpp."""

    row_counts = ("rows",)
    _fields_ = (
        *_integers("dtype"),
        *_pointers("gate_up"),
        *_integers("rows intermediate activation"),
        *_pointers("inner"),
    )


class RMSNorm(Arguments):
    """norm.cpp."""

    row_counts = ("rows",)
    _fields_ = (
        *_integers("dtype"),
        *_pointers("x"),
        *_integers("x_stride heads head_stride"),
        *_pointers("residual weight"),
        *_integers("weight_dtype rows size"),
        ("eps", c_float),
        *_pointers("y total"),
    )


class PagedAttention(Arguments):
    """attention.cpp."""

    row_counts = ("tokens", "sequences")
    _fields_ = (
        *_integers("dtype"),
        *_pointers("q k v"),
        *_integers("q_stride k_stride v_stride tokens heads kv_heads head_dim v_dim"),
        *_pointers("keys values"),
        *_integers("paired blocks block_size sequences"),
        *_pointers("input_lengths cached_lengths block_tables"),
        *_integers("table_width"),
        *_pointers("slots cos sin"),
        *_integers("rope_half interleaved window"),
        ("scale", c_float),
        *_pointers("out"),
    )


class Sample(Arguments):
    """sample.cpp."""

    _fields_ = (
        *_integers("dtype"),
        *_pointers("logits"),
        *_integers("stride rows vocab"),
        *_pointers("temperature top_k top_p min_p seeds positions repetition presence frequency"),
        *_pointers("penalty_rows penalty_ids output_counts"),
        *_integers("penalties"),
        *_pointers("bias_rows bias_ids bias_values"),
        *_integers("biases"),
        *_pointers("mask"),
        *_integers("num_logprobs"),
        *_pointers("token_ids logprobs ranks top_ids top_logprobs"),
    )


class AllReduce(Arguments):
    """all_reduce.cpp."""

    row_counts = ("size",)
    _fields_ = _integers("dtype") + _pointers("group data") + _integers("size")


class AllGather(Arguments):
    """collectives.cpp."""

    row_counts = ("rows",)
    _fields_ = _pointers("group data") + _integers("rows row_bytes") + _pointers("out")


class Broadcast(Arguments):
    """collectives.cpp."""

    _fields_ = _pointers("group data") + _integers("bytes source")
