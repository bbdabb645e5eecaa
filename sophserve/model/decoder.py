"""The decoder-only language model that most architectures are a variation of.

An architecture derives from CausalLM, says what one of its layers is (`make_layer`), and names its tensors
(`checkpoint_names`). Attention and DecoderLayer are the common forms of the two; an architecture may bring its own.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import torch
from msgspec import Meta
from torch import Tensor

from device.interface import Rope, StepInputs
from sophserve.errors import CheckpointError
from sophserve.model.config import parse_config
from sophserve.model.context import ModelContext
from sophserve.model.layers import Embedding, Heads, Linear, LMHead, PackedModule, PagedAttention, RMSNorm
from sophserve.model.module import Module
from sophserve.model.rope import RopeParameters, make_rope

Size = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The keys of config.json that every decoder has, under their own names. Those without a default must be there."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)]
    rope_parameters: RopeParameters
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json's hidden_size {self.hidden_size} is not a multiple of its num_attention_heads "
                f"{self.num_attention_heads}, and it gives no head_dim"
            )
        if self.num_attention_heads % self.kv_heads:
            raise CheckpointError(
                f"config.json's num_attention_heads {self.num_attention_heads} is not a multiple of its "
                f"num_key_value_heads {self.kv_heads}"
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; as many as of queries where the file does not say."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def rope(self, max_positions: int) -> Rope:
        """How queries and keys are rotated at positions 0 to max_positions - 1."""
        return make_rope(self.rope_parameters, self.head_size, max_positions)


@dataclass(frozen=True, kw_only=True)
class LayeredWindowConfig(DecoderConfig):
    """Some layers have a sliding window: those that layer_types names, or those from max_window_layers on."""

    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is None:
            return
        unknown = set(self.layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise CheckpointError(
                f"config.json's layer_types have {', '.join(sorted(unknown))}, which is not supported"
            )
        if len(self.layer_types) < self.num_hidden_layers:
            raise CheckpointError(
                f"config.json's layer_types name {len(self.layer_types)} layers of {self.num_hidden_layers}"
            )
        if "sliding_attention" in self.layer_types and not (self.use_sliding_window and self.sliding_window):
            raise CheckpointError(
                "config.json's layer_types name sliding_attention, but it gives no sliding_window or says "
                "use_sliding_window: false"
            )

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens; None where it sees all."""
        if not self.use_sliding_window:
            return None
        slides = self._slides(layer) if self.layer_types is None else self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if slides else None

    def _slides(self, layer: int) -> bool:
        """Whether a layer has a window where the file does not say it of each."""
        return layer >= self.max_window_layers


class Attention(Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245) with rotary positions.

    qk_norm: RMSNorm over the channels of each query and key head before the rotation. inputs: channels of what it is
    called with, where that is not a hidden state.
    """

    def __init__(
        self,
        context: ModelContext,
        config: DecoderConfig,
        rope: Rope,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        window: int | None = None,
        inputs: int | None = None,
    ) -> None:
        hidden, size = config.hidden_size, config.head_size
        heads, kv_heads = config.num_attention_heads, config.kv_heads
        q, kv = Heads(heads, size), Heads(kv_heads, size, replicate=True)
        parts = {"q": q, "k": kv, "v": kv}
        self.qkv = Linear(context, inputs or hidden, parts, bias=qkv_bias, shard="column", role="qkv")
        self.q_norm = RMSNorm(context, size, config.rms_norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(context, size, config.rms_norm_eps) if qk_norm else None
        self.attention = PagedAttention(context, heads, kv_heads, size, rope, size**-0.5, window)
        self.output = Linear(context, q, hidden, bias=output_bias, shard="row", role="attention_output")

    def __call__(self, x: Tensor, step: StepInputs) -> Tensor:
        """`[tokens, hidden]` to the same shape."""
        size = self.attention.head_dim
        q, k, v = (part.unflatten(-1, (-1, size)) for part in self.qkv(x).split(self.qkv.part_sizes, dim=-1))
        if self.q_norm and self.k_norm:
            q, _ = self.q_norm(q)
            k, _ = self.k_norm(k)
        return self.output(self.attention(q, k, v, step))


class DecoderLayer(Module):
    """Normalise, attend, add; normalise, MLP, add. Each addition is fused with the normalisation after it."""

    def __init__(self, context: ModelContext, config: DecoderConfig, attention: Module, mlp: Module) -> None:
        self.attention_norm = RMSNorm(context, config.hidden_size, config.rms_norm_eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(context, config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def __call__(self, x: Tensor, residual: Tensor | None, step: StepInputs) -> tuple[Tensor, Tensor]:
        """The layer's last result, not yet added, and the residual, both `[tokens, hidden]`."""
        x, residual = self.attention_norm(x, residual)
        x = self.attention(x, step)
        x, residual = self.mlp_norm(x, residual)
        return self.mlp(x), residual


class Absent(Module):
    """Stands for a layer that is not run here."""

    def __call__(self, x: Tensor, residual: Tensor | None, step: StepInputs) -> tuple[Tensor, Tensor | None]:
        """Adds nothing."""
        return x, residual


class MtpLayer(DecoderLayer):
    """Predicts one token further (multi-token prediction, https://arxiv.org/abs/2412.19437, section 2.2): a decoder
    layer over what `join` makes of a token's embedding and the hidden state of the one before it."""

    def __init__(self, context: ModelContext, config: DecoderConfig, attention: Module, mlp: Module) -> None:
        super().__init__(context, config, attention, mlp)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.token_norm = RMSNorm(context, hidden, eps)
        self.hidden_norm = RMSNorm(context, hidden, eps)
        self.join = Linear(context, 2 * hidden, hidden)
        self.norm = RMSNorm(context, hidden, eps)

    def predict(self, tokens: Tensor, hidden: Tensor, step: StepInputs) -> Tensor:
        """CausalLM.predict; tokens: the embeddings of step.ids, `[tokens, hidden]`."""
        joined = self.join(torch.cat([self.token_norm(tokens)[0], self.hidden_norm(hidden)[0]], -1))
        return self.norm(*self(joined, None, step))[0]


# The names of transformers' Llama, which most checkpoints follow.
DECODER_NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers.{}.input_layernorm": "layers.{}.attention_norm",
    "model.layers.{}.self_attn.q_proj": "layers.{}.attention.qkv.q",
    "model.layers.{}.self_attn.k_proj": "layers.{}.attention.qkv.k",
    "model.layers.{}.self_attn.v_proj": "layers.{}.attention.qkv.v",
    "model.layers.{}.self_attn.o_proj": "layers.{}.attention.output",
    "model.layers.{}.post_attention_layernorm": "layers.{}.mlp_norm",
    "model.layers.{}.mlp.gate_proj": "layers.{}.mlp.gate_up.gate",
    "model.layers.{}.mlp.up_proj": "layers.{}.mlp.gate_up.up",
    "model.layers.{}.mlp.down_proj": "layers.{}.mlp.down",
    "model.norm": "norm",
    "lm_head": "head",
}

C = TypeVar("C", bound=DecoderConfig)

Passed = tuple[Tensor, Tensor]
"""What a stage gives the next one: its last layer's result, not yet added, and the residual, `[tokens, hidden]`."""


class CausalLM(Module, ABC, Generic[C]):
    """Embedding, layers, final norm, head. Made from config.json; the weights come later, with `load_model`.

    Of a model that is split into stages it has what the context's layers say: the first stage has the embedding, the
    last one norm and head, and where these are tied both have the weight.

    config_class: the dataclass of config.json's keys that the architecture obeys.
    operators: names of the operators (device.interface.Ops) that it needs.
    checkpoint_names: where the tensors of a checkpoint go, without the last component (weight, bias). `{}` stands for
        a number, such as the layer's. Where files differ, several names lead to one place.
    tied: modules whose tensors another module takes.
    ropes: those that its layers rotate by. generates: whether it has a head of its own or a tied one.
    mtp: predicts a further token; None where the context does not ask for that. handed: hidden states of the last call
        that `hand_out` asked for, each `[tokens, hidden]`.
    """

    head: LMHead
    embedding: Embedding
    norm: RMSNorm
    config_class: ClassVar[type[DecoderConfig]]
    operators: ClassVar[frozenset[str]] = frozenset(
        {"embedding", "rms_norm", "linear", "gated_mlp", "paged_attention", "sample"}
    )
    checkpoint_names: ClassVar[Mapping[str, str]] = DECODER_NAMES

    def __init__(self, config: dict[str, Any], context: ModelContext) -> None:
        self.config: C = self.parse(config)
        self.context = context
        self._tensor_names = {target: name for name, target in self.checkpoint_names.items()}
        self.vocab_size = self.config.vocab_size
        self.generates = True
        tied = self.config.tie_word_embeddings
        self.tied = {"embedding": "head"} if tied else {}
        rope, put = self.config.rope(context.max_positions), context.device.put
        self.rope = replace(rope, cos=put(rope.cos), sin=put(rope.sin))
        self.ropes = [self.rope]
        hidden, count = self.config.hidden_size, self.config.num_hidden_layers
        held = range(count) if context.layers is None else context.layers
        self.is_first, self.is_last = held.start == 0, held.stop == count
        embeds = self.is_first or context.mtp
        if self.is_last or (embeds and tied):
            self.head = LMHead(context, hidden, self.vocab_size, tied=tied)
        if embeds:
            self.embedding = Embedding(context, self.vocab_size, hidden, self.head if tied else None)
        self.layers = [self.make_layer(index) if index in held else Absent() for index in range(count)]
        if self.is_last:
            self.norm = RMSNorm(context, hidden, self.config.rms_norm_eps)
        self.mtp: MtpLayer | None = None
        self.handed: list[Tensor] = []
        self._handing: Collection[int] = ()

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Any:
        """What the architecture obeys of config.json, by its config_class. Raises CheckpointError."""
        return parse_config(cls.config_class, config)

    @classmethod
    def max_model_len(cls, config: dict[str, Any]) -> int:
        """The longest sequence, in tokens, that config.json allows."""
        parsed: DecoderConfig = cls.parse(config)
        return parsed.rope_parameters.context_length(parsed.max_position_embeddings)

    @property
    def token_flops(self) -> int:
        """Operations of the products that each token goes through, without the head."""
        layers = self.layers if self.mtp is None else [*self.layers, self.mtp]
        modules = (module for layer in layers for module in layer.modules())
        return sum(module.token_flops for module in modules if isinstance(module, PackedModule))

    @abstractmethod
    def make_layer(self, index: int) -> Module:
        """Layer `index`: a module called with `(x, residual or None, step)` that returns x and a residual.

        Their sum is the layer's result; both are `[tokens, hidden]`, and the residual may be None.
        """

    def __call__(self, step: StepInputs, passed: Passed | None = None) -> Tensor:
        """The last hidden states, normalised, `[tokens, hidden]`. passed: what the stage before this one made."""
        return self.norm(*self._run_layers(step, passed))[0]

    def advance(self, step: StepInputs, passed: Passed | None = None) -> Passed:
        """What a stage that is not the last one makes for the next one. passed: what the one before it made."""
        x, residual = self._run_layers(step, passed)
        return x, torch.zeros_like(x) if residual is None else residual

    def _run_layers(self, step: StepInputs, passed: Passed | None) -> tuple[Tensor, Tensor | None]:
        x, residual = passed or (self.embedding(step.ids), None)
        if step.given and passed is None:
            x[step.given.rows] = step.given.values
        self.handed = []
        for index, layer in enumerate(self.layers):
            if index in self._handing:
                self.handed.append(self._sum(x, residual))
            x, residual = layer(x, residual, step)
        if len(self.layers) in self._handing:
            self.handed.append(self._sum(x, residual))
        return x, residual

    def hand_out(self, layers: Collection[int]) -> None:
        """Have each call leave in `handed` what enters these layers, in order; their number stands for what leaves the
        last one."""
        self._handing = layers
        self._ones = self.context.device.put(torch.ones(self.config.hidden_size, dtype=self.context.dtype))

    def _sum(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """By an operator, so that the step can be recorded."""
        return self.context.device.ops.rms_norm(x, self._ones, self.config.rms_norm_eps, residual)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to logits over the whole vocabulary, `[rows, vocab]`, in the run's dtype."""
        return self.head(hidden)

    def predict(self, hidden: Tensor, step: StepInputs) -> Tensor:
        """By the layer for it, what the head makes logits of for the tokens after those in step.ids.

        hidden: the model's result for the tokens before those, `[tokens, hidden]`, as is what this gives. step: as of
        the tokens that hidden is of, but for the ids, for in the cache of the layer, too, each has a place of its own.
        """
        assert self.mtp
        return self.mtp.predict(self.embedding(step.ids), hidden, step)

    @classmethod
    def has_mtp(cls, config: dict[str, Any], stored: Collection[str] | None) -> bool:
        """Whether there is a layer that predicts a further token in a checkpoint with these tensors; None where only
        its config.json is there. Raises CheckpointError."""
        return False

    def left_out(self, stored: Collection[str]) -> set[str]:
        """Of a checkpoint's tensors, by their names, those of parts of the model that are not run here."""
        return set()

    def is_elsewhere(self, parameter: str) -> bool:
        """Whether a parameter, by its path, is one of another stage."""
        part, _, rest = parameter.partition(".")
        number = rest.partition(".")[0]
        if part == "layers" and number.isdecimal():
            return int(number) < len(self.layers) and isinstance(self.layers[int(number)], Absent)
        return part in ("embedding", "norm", "head") and not hasattr(self, part)

    def parameter_of(self, tensor: str) -> str | None:
        """The path of the parameter that a tensor of a checkpoint belongs to; None for one of no use here."""
        module, _, last = tensor.rpartition(".")
        numbers = _NUMBER.findall(module)
        target = self.checkpoint_names.get(module) or self.checkpoint_names.get(_NUMBER.sub("{}", module))
        return f"{target.format(*numbers)}.{last}" if target else None

    def tensor_of(self, parameter: str) -> str:
        """The name in a checkpoint of a parameter, the reverse of parameter_of; of several the last, and of what two
        modules share that of the one whose tensors the other takes."""
        module, _, last = parameter.rpartition(".")
        module = next((source for source, taker in self.tied.items() if taker == module), module)
        name = self._tensor_names.get(_NUMBER.sub("{}", module), module)
        return f"{name.format(*_NUMBER.findall(module))}.{last}"


# A component that is a number.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
