"""The parameters of the kernels: the structures of native/, field for field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any, ClassVar

import torch
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


_KINDS = {"*": c_void_p, "~": c_float}


def _structure(fields: str, *row_counts: str) -> type[Arguments]:
    """Of the names of its fields in order: *name is an address, ~name a float, any other an int64."""
    kinds = [(name.lstrip("*~"), _KINDS.get(name[0], c_int64)) for name in fields.split()]
    return type("Arguments", (Arguments,), {"_fields_": kinds, "row_counts": row_counts})


_ATTENTION = (
    "dtype *q *k *v q_stride k_stride v_stride tokens heads kv_heads head_dim v_dim *keys *values paired "
    "blocks block_size sequences *input_lengths *cached_lengths *block_tables table_width *slots "
    "*cos *sin rope_half interleaved window ~scale *out"
)
# A packed weight, its names with something before them, and without.
_NAMED_WEIGHT = (
    "*{0}weight {0}weight_type {0}activations {0}inputs *{0}order {0}group *{0}scales {0}scales_dtype *{0}shifts"
)
_WEIGHT = _NAMED_WEIGHT.format("")

KERNELS = {
    "embedding": _structure("*ids rows *table table_rows row_bytes piece_bytes pieces first partial *out", "rows"),
    "code_rows": _structure(f"*ids rows outputs {_WEIGHT} first partial dtype *out width", "rows"),
    "pack_linear": _structure("dtype *values outputs inputs *packed"),
    "pack_codes": _structure("weight_type *values outputs inputs *packed group *scales"),
    "linear": _structure(f"dtype *x x_stride rows outputs {_WEIGHT} *bias *y y_dtype gated activation", "rows"),
    "gate": _structure("dtype *gate_up rows intermediate activation *inner", "rows"),
    "route_experts": _structure(
        "*logits rows experts top_k scoring groups top_groups renormalize ~scale *bias *ids *weights", "rows"
    ),
    "fused_experts": _structure(
        "dtype *x x_stride rows hidden intermediate experts top_k *ids *weights "
        f"{_NAMED_WEIGHT.format('gate_up_')} {_NAMED_WEIGHT.format('down_')} activation *shared *shared_logits *out",
        "rows",
    ),
    "rms_norm": _structure(
        "dtype *x x_stride heads head_stride *residual *weight weight_dtype rows size ~eps *y *total", "rows"
    ),
    "layer_norm": _structure("dtype *x x_stride *weight *bias weight_dtype rows size ~eps *y", "rows"),
    "paged_attention": _structure(_ATTENTION, "tokens", "sequences"),
    "paged_latent_attention": _structure(_ATTENTION + " nope_dim out_dim *up_keys *up_values", "tokens", "sequences"),
    "dense_attention": _structure(
        "dtype *q *k *v q_stride k_stride v_stride tokens heads head_dim segments *lengths *cos *sin rope_half "
        "~scale *out"
    ),
    "sample": _structure(
        "dtype *logits stride rows vocab *temperature *top_k *top_p *min_p *seeds *positions "
        "*repetition *presence *frequency *penalty_rows *penalty_ids *output_counts penalties "
        "*bias_rows *bias_ids *bias_values biases *mask num_logprobs "
        "*token_ids *logprobs *ranks *top_ids *top_logprobs"
    ),
    "all_reduce": _structure("dtype *group *data size", "size"),
    "all_gather": _structure("*group *data rows row_bytes *out", "rows"),
    "broadcast": _structure("*group *data bytes source"),
}
"""The structure of each kernel."""


def as_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A tensor in one piece."""
    # Asked first: a conversion that does nothing costs microseconds all the same.
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()


def as_int32(tensor: Tensor) -> Tensor:
    """A tensor of whole numbers in one piece."""
    return tensor if tensor.dtype == torch.int32 and tensor.is_contiguous() else tensor.int().contiguous()


def as_rows(x: Tensor) -> Tensor:
    """x `[rows, channels]` with a row's channels side by side."""
    return x if x.stride(1) == 1 else x.contiguous()
