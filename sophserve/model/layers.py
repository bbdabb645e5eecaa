"""The building blocks that architectures are written with. Each knows how to split itself between ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from device.interface import (
    Activation,
    CacheSpec,
    CanonicalWeight,
    DenseWeight,
    ExpertsWeight,
    KVCache,
    LatentUpWeight,
    PackedWeight,
    Role,
    Rope,
    StepInputs,
)
from sophserve import fit
from sophserve.errors import CheckpointError
from sophserve.model.canonical import (
    pad_rows,
    readable_rows,
    stack_tensors,
    stack_weights,
    with_int8_activations,
)
from sophserve.model.context import ModelContext
from sophserve.model.module import Module, ParameterSpec, share
from sophserve.model.quantization import DenseFormat, WeightFormat, WeightPart
from sophserve.model.rounding import round_to_int8

Shard = Literal["replicated", "column", "row"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def activation(hidden_act: str) -> Activation:
    """The operator's name of config.json's `hidden_act`. Raises CheckpointError for one that is not known."""
    if hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json's hidden_act {hidden_act!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[hidden_act]


@dataclass(frozen=True)
class Heads:
    """A side of a projection, or a part of one, that is split between ranks in whole heads.

    replicate: where there are fewer heads than ranks, neighbouring ranks share one (keys and values).
    """

    count: int
    size: int
    replicate: bool = False


def _features(context: ModelContext, side: int | Heads, role: Role, *, split: bool) -> tuple[int, slice]:
    """The features of a side of a projection in all, and those of this rank."""
    heads = side if isinstance(side, Heads) else Heads(side, 1)
    count, size = heads.count, heads.size
    held = slice(0, count)
    if split:
        things = fit.heads_in_words(count, size) if isinstance(side, Heads) else fit.columns_in_words(count)
        held = share(context, count, role, things, replicate=heads.replicate)
    return count * size, slice(held.start * size, held.stop * size)


class PackedModule(Module):
    """Owns one weight that the device has packed, stacked from parts that are tensors of their own on disk.

    parts: by what comes before `weight` in their names. role: what it is, for the device. formats: how each part stands
    on disk.
    """

    weight: PackedWeight
    rounds_activations = True
    """Whether activations may be rounded to int8 before they meet whole numbers."""

    def __init__(self, context: ModelContext, parts: Mapping[str, WeightPart], role: Role) -> None:
        self._context = context
        self.role = role
        self._parts = parts
        self.formats: dict[str, WeightFormat] = {prefix: DenseFormat() for prefix in parts}

    @property
    def token_flops(self) -> int:
        """Operations of a row's product, two for each multiplication."""
        return 2 * self.weight.out_features * self.weight.in_features

    def parameters(self) -> dict[str, ParameterSpec]:
        """`weight`, or what its format has, or `part.weight` for each part."""
        return {
            f"{prefix}{name}": spec
            for prefix, part in self._parts.items()
            for name, spec in self._part_parameters(prefix, part).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        parts = [
            self.formats[prefix].read(part, {name: tensors[f"{prefix}{name}"] for name in names})
            for prefix, part in self._parts.items()
            if (names := self.formats[prefix].parameters(part))
        ]
        if self._context.activation_bits == 8 and self.rounds_activations:
            parts = [with_int8_activations(part) for part in parts]
        self.load_packed(self._context.device.pack(self._canonical(parts), self.role), tensors)

    def load_packed(self, weight: PackedWeight, tensors: Mapping[str, Tensor]) -> None:
        """Take a weight that was packed before, and of the tensors those that are no weights."""
        self.weight = weight

    def _part_parameters(self, prefix: str, part: WeightPart) -> dict[str, ParameterSpec]:
        return self.formats[prefix].parameters(part)

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> CanonicalWeight | ExpertsWeight | LatentUpWeight:
        """What the device packs of the parts."""
        return stack_weights(parts, self._context.dtype)


class Linear(PackedModule):
    """`x @ weight.T + bias`, with the weight packed by the device.

    out_features: a size, or several named parts that are separate tensors on disk and one product here, stacked in
    order: `Linear(context, hidden, {"gate": intermediate, "up": intermediate}, shard="column")`.
    shard: "column" splits each part's output features between ranks; "row" splits the input features and sums the
    results over ranks; "replicated" splits nothing. role: what the weight is, for the device.
    in_features, out_features, part_sizes: what this rank holds.
    """

    def __init__(
        self,
        context: ModelContext,
        in_features: int | Heads,
        out_features: int | Heads | Mapping[str, int | Heads],
        *,
        bias: bool = False,
        shard: Shard = "replicated",
        role: Role = "other",
    ) -> None:
        parts = out_features if isinstance(out_features, Mapping) else {"": out_features}
        inputs, columns = _features(context, in_features, role, split=shard == "row")
        held: dict[str, WeightPart] = {}
        for name, part in parts.items():
            outputs, rows = _features(context, part, role, split=shard == "column")
            held[f"{name}." if name else ""] = WeightPart((outputs, inputs), rows, columns)
        super().__init__(context, held, role)
        self._shard = shard
        self._has_bias = bias
        self.part_sizes = [part.rows.stop - part.rows.start for part in held.values()]
        self.in_features = columns.stop - columns.start
        self.out_features = sum(self.part_sizes)
        self.bias: Tensor | None = None
        # Every rank of a row split adds to the same sum: only one may add the bias.
        self._adds_bias = bias and (shard != "row" or context.communicator.rank == 0)

    def _part_parameters(self, prefix: str, part: WeightPart) -> dict[str, ParameterSpec]:
        bias = {"bias": ParameterSpec(part.shape[:1], (part.rows,))} if self._has_bias else {}
        return super()._part_parameters(prefix, part) | bias

    def load_packed(self, weight: PackedWeight, tensors: Mapping[str, Tensor]) -> None:
        """Take a weight that was packed before, and of the tensors the biases."""
        self.weight = weight
        if self._adds_bias:
            biases = [tensors[f"{prefix}bias"] for prefix in self._parts]
            self.bias = self._context.device.put(stack_tensors(biases, self._context.dtype))

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """`[tokens, in_features]` to `[tokens, out_features]`, for a row split the sum over ranks. activation: of each
        of the results, which then must be whole."""
        y = self._context.device.ops.linear(x, self.weight, self.bias, activation)
        return self._context.communicator.all_reduce(y) if self._shard == "row" else y


class RMSNorm(Module):
    """Root mean square normalisation over the last `size` channels, with an optional fused residual add."""

    weight: Tensor

    def __init__(self, context: ModelContext, size: int, eps: float) -> None:
        self._context = context
        self._size = size
        self._eps = eps

    def parameters(self) -> dict[str, ParameterSpec]:
        """`weight`, `[size]`."""
        return {"weight": ParameterSpec((self._size,))}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.weight = self._context.device.put(stack_tensors([tensors["weight"]], self._context.dtype))

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The normalised x + residual, and x + residual."""
        return self._context.device.ops.rms_norm(x, self.weight, self._eps, residual)


class Embedding(PackedModule):
    """The token embedding, its rows split between ranks.

    tied: the head that holds the same weight; it is read from there.
    """

    def __init__(self, context: ModelContext, vocab_size: int, hidden_size: int, tied: LMHead | None = None) -> None:
        rows = _vocabulary_share(context, vocab_size, "embedding")
        parts = {} if tied else {"": WeightPart((vocab_size, hidden_size), rows, slice(0, hidden_size))}
        super().__init__(context, parts, "embedding")
        self._first = None if context.communicator.world_size == 1 else rows.start
        self._tied = tied

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> CanonicalWeight:
        return readable_rows(stack_weights(parts, self._context.dtype), self._context.dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids int32 `[tokens]` to `[tokens, hidden]`."""
        table = self._tied.weight if self._tied else self.weight
        rows = self._context.device.ops.embedding(ids, table, self._first, self._context.dtype)
        return self._context.communicator.all_reduce(rows)


class LMHead(PackedModule):
    """The projection to logits, the vocabulary split between ranks.

    tied: whether it is the embedding, too.
    """

    def __init__(self, context: ModelContext, hidden_size: int, vocab_size: int, *, tied: bool = False) -> None:
        rows = _vocabulary_share(context, vocab_size, "head")
        part = WeightPart((vocab_size, hidden_size), rows, slice(0, hidden_size))
        super().__init__(context, {"": part}, "tied_head" if tied else "head")
        self._vocab_size = vocab_size
        most = context.device.shard(vocab_size, "head", 0, context.communicator.world_size)
        self._missing = (vocab_size if most is None else most.stop) - (rows.stop - rows.start)

    def _canonical(self, parts: Sequence[CanonicalWeight]) -> CanonicalWeight:
        (part,), dtype = parts, self._context.dtype
        if self._context.head_bits == 8 and isinstance(part, DenseWeight):
            weight: CanonicalWeight = round_to_int8(part.values)
            if self._context.activation_bits == 8:
                weight = with_int8_activations(weight)
        else:
            weight = stack_weights(parts, dtype)
        if self.role == "tied_head":
            weight = readable_rows(weight, dtype)
        # Gathering needs equal shares, so rows of zeros follow the vocabulary's last.
        return pad_rows(weight, self._missing)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to logits over the whole vocabulary, `[rows, vocab]`, on every rank."""
        logits = self._context.device.ops.linear(hidden, self.weight)
        return self._context.communicator.all_gather(logits)[:, : self._vocab_size]


def _vocabulary_share(context: ModelContext, vocab_size: int, role: Role) -> slice:
    return share(context, vocab_size, role, fit.vocabulary_in_words(vocab_size))


class GatedMLP(Module):
    """`down(activation(gate(x)) * up(x))` (https://arxiv.org/abs/2002.05202), split by inner features."""

    def __init__(
        self,
        context: ModelContext,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        *,
        bias: bool = False,
    ) -> None:
        self._context = context
        self._activation = activation(hidden_act)
        parts = {"gate": intermediate_size, "up": intermediate_size}
        self.gate_up = Linear(context, hidden_size, parts, bias=bias, shard="column", role="gate_up")
        self.down = Linear(context, intermediate_size, hidden_size, bias=bias, shard="row", role="down")

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same shape."""
        return self._context.communicator.all_reduce(self.partial(x))

    def partial(self, x: Tensor) -> Tensor:
        """What this rank adds to the sum over ranks."""
        gate_up, down = self.gate_up, self.down
        ops = self._context.device.ops
        return ops.gated_mlp(x, gate_up.weight, down.weight, self._activation, gate_up.bias, down.bias)


class MLP(Module):
    """`down(activation(up(x)))`, split by inner features. out_size: of the result, by default x's."""

    def __init__(
        self,
        context: ModelContext,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        out_size: int = 0,
        *,
        bias: bool = True,
    ) -> None:
        self._activation = activation(hidden_act)
        self.up = Linear(context, hidden_size, intermediate_size, bias=bias, shard="column", role="gate_up")
        self.down = Linear(context, intermediate_size, out_size or hidden_size, bias=bias, shard="row", role="down")

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same shape, or `[tokens, out_size]`."""
        return self.down(self.up(x, self._activation))


class LayerNorm(Module):
    """Normalisation to mean 0 and variance 1 over the last `size` channels (https://arxiv.org/abs/1607.06450)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, context: ModelContext, size: int, eps: float) -> None:
        self._context = context
        self._size = size
        self._eps = eps

    def parameters(self) -> dict[str, ParameterSpec]:
        """`weight` and `bias`, `[size]`."""
        return {"weight": ParameterSpec((self._size,)), "bias": ParameterSpec((self._size,))}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        put, dtype = self._context.device.put, self._context.dtype
        self.weight, self.bias = (put(stack_tensors([tensors[name]], dtype)) for name in ("weight", "bias"))

    def __call__(self, x: Tensor) -> Tensor:
        """x normalised, of its shape."""
        return self._context.device.ops.layer_norm(x, self.weight, self.bias, self._eps)


class CachedModule(Module):
    """Keeps something of every token in a cache of its own.

    cache: what that is. kv: the cache, set by whoever allocates it, before the first call. window: a token sees itself
    and the window - 1 tokens before it; None for all. pair_flops: operations for each pair of a new token and one that
    it sees.
    """

    cache: CacheSpec
    kv: KVCache
    window: int | None
    pair_flops: int


class PagedAttention(CachedModule):
    """Causal attention over the paged KV cache of one layer. head_dim: channels of a head."""

    def __init__(
        self,
        context: ModelContext,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        scale: float,
        window: int | None = None,
    ) -> None:
        self._context = context
        own = share(context, heads, "qkv", f"{heads} attention heads")
        own_kv = share(context, kv_heads, "qkv", f"{kv_heads} key/value heads", replicate=True)
        held, ranks = own_kv.stop - own_kv.start, context.communicator.world_size
        self.cache = CacheSpec(held, (head_dim, head_dim), context.dtype, replicated=kv_heads < ranks)
        self.head_dim = head_dim
        self.window = window
        # Two products with head_dim multiplications each.
        self.pair_flops = 4 * (own.stop - own.start) * head_dim
        self._rope = rope
        self._scale = scale

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, step: StepInputs) -> Tensor:
        """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`, not rotated yet.

        Returns `[tokens, heads * head_dim]`.
        """
        self._context.beat()
        out = self._context.device.ops.paged_attention(q, k, v, self.kv, step, self._rope, self._scale, self.window)
        return out.flatten(-2)
