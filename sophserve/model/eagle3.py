"""EAGLE-3 heads (https://arxiv.org/abs/2503.01840): one layer over a model's own hidden states that says what follows.

Their files come in two layouts, that of the authors (`midlayer`) and that of the library speculators (`layers.0`, and
the layer's keys under `transformer_layer_config` in config.json).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from device.interface import StepInputs
from sophserve.errors import CheckpointError
from sophserve.fit import is_eagle3
from sophserve.model.config import parse_config
from sophserve.model.context import ModelContext
from sophserve.model.decoder import Attention, CausalLM, DecoderConfig, DecoderLayer, Size
from sophserve.model.layers import GatedMLP, Linear, LMHead, RMSNorm
from sophserve.model.loading import Progress, build_model, find_architecture, load_weights
from sophserve.model.weights import StoredTensor, find_tensors, read_tensors

_IN_LAYER = {
    "input_layernorm": "token_norm",
    "hidden_norm": "attention_norm",
    "self_attn.q_proj": "attention.qkv.q",
    "self_attn.k_proj": "attention.qkv.k",
    "self_attn.v_proj": "attention.qkv.v",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate_up.gate",
    "mlp.up_proj": "mlp.gate_up.up",
    "mlp.down_proj": "mlp.down",
}
_TABLES = {"d2t", "t2d"}


def find_smaller(config: dict[str, Any]) -> type[CausalLM]:
    """The class of a model that guesses: a head, or one that a plugin registered. Raises CheckpointError."""
    return Eagle3 if is_eagle3(config) else find_architecture(config)


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(DecoderConfig):
    """draft_vocab_size: tokens that the head can say. target_hidden_size: of the model's hidden states, where it is not
    its own. norm_before_residual: the layer adds to the normalised state. eagle_aux_hidden_state_layer_ids: the layers
    of the model whose inputs it takes."""

    draft_vocab_size: Size | None = None
    target_hidden_size: Size | None = None
    norm_before_residual: bool = False
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    def layers_of(self, count: int) -> list[int]:
        """The layers of a model of `count` whose inputs it takes, in order; `count` stands for what the last one gives.
        Raises CheckpointError."""
        found = sorted(set(self.eagle_aux_hidden_state_layer_ids or (2, count // 2, count - 3)))
        if len(found) != 3 or not (found[0] >= 0 and found[2] <= count):
            raise CheckpointError(f"it takes the inputs of layers {found} of a model that has {count}, and needs three")
        return found


class Eagle3Layer(DecoderLayer):
    """A decoder layer whose attention sees a token's embedding beside the hidden state of the token before it."""

    def __init__(self, context: ModelContext, config: Eagle3Config, attention: Attention, mlp: GatedMLP) -> None:
        super().__init__(context, config, attention, mlp)
        self.token_norm = RMSNorm(context, config.hidden_size, config.rms_norm_eps)
        self._adds_normalised = config.norm_before_residual

    def predict(self, tokens: Tensor, hidden: Tensor, step: StepInputs) -> tuple[Tensor, Tensor]:
        """The layer's result, not yet added, and the residual; all are `[tokens, hidden]`."""
        normalised, _ = self.attention_norm(hidden)
        x = self.attention(torch.cat([self.token_norm(tokens)[0], normalised], -1), step)
        x, residual = self.mlp_norm(x, normalised if self._adds_normalised else hidden)
        return self.mlp(x), residual


class Eagle3(CausalLM[Eagle3Config]):
    """`fuse` makes one state of three of the model's; `predict` makes of such a state and the next token one for the
    token behind, which both `logits` and `predict` take. target_ids: the token of each row of the head, int64, on the
    host; None where they are the model's."""

    config_class = Eagle3Config
    checkpoint_names: ClassVar[Mapping[str, str]] = {
        "embed_tokens": "embedding",
        "fc": "fc",
        **{f"midlayer.{name}": f"layers.0.{place}" for name, place in _IN_LAYER.items()},
        **{f"layers.{{}}.{name}": f"layers.{{}}.{place}" for name, place in _IN_LAYER.items()},
        "norm": "norm",
        "lm_head": "head",
    }

    def __init__(self, config: dict[str, Any], context: ModelContext) -> None:
        super().__init__(config, context)
        size = self.config.hidden_size
        self.head = LMHead(context, size, self.config.draft_vocab_size or self.vocab_size)
        self.fc = Linear(context, 3 * (self.config.target_hidden_size or size), size)
        self.target_ids: Tensor | None = None

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Eagle3Config:
        """Of either layout."""
        found = {**(config.get("transformer_layer_config") or {}), **config, "tie_word_embeddings": False}
        if found.get("num_hidden_layers", 1) != 1:
            raise CheckpointError(f"it has {found['num_hidden_layers']} layers; heads of one layer are supported")
        own = found.pop("eagle_config", None) or {}
        found = {"num_hidden_layers": 1} | {key: value for key, value in own.items() if value is not None} | found
        if found.get("norm_before_fc") or found.get("use_aux_hidden_state") is False:
            raise CheckpointError(
                "its config.json asks for norm_before_fc or use_aux_hidden_state: false; neither is known"
            )
        return parse_config(Eagle3Config, found)

    def make_layer(self, index: int) -> Eagle3Layer:
        config, bias = self.config, self.config.attention_bias
        size = config.hidden_size
        attention = Attention(self.context, config, self.rope, qkv_bias=bias, output_bias=bias, inputs=2 * size)
        mlp = GatedMLP(self.context, size, config.intermediate_size, config.hidden_act, bias=config.mlp_bias)
        return Eagle3Layer(self.context, config, attention, mlp)

    def fuse(self, handed: Sequence[Tensor]) -> Tensor:
        """One state `[tokens, hidden]` of the three that the model handed out."""
        return self.fc(torch.cat(list(handed), -1).to(self.context.dtype))

    def predict(self, hidden: Tensor, step: StepInputs) -> Tensor:
        """As CausalLM.predict, of states that were fused, or of what this gave."""
        layer = cast(Eagle3Layer, self.layers[0])
        return self.norm(*layer.predict(self.embedding(step.ids), hidden, step))[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to logits over the head's own vocabulary."""
        return self.head(self.norm(hidden)[0])

    def left_out(self, stored: Collection[str]) -> set[str]:
        """The tables of tokens, which are no weights."""
        return _TABLES & set(stored)


def load_eagle3(
    directory: Path,
    config: dict[str, Any],
    larger: CausalLM,
    larger_directory: Path,
    context: ModelContext,
    on_progress: Progress,
) -> Eagle3:
    """The head of a model. Where its files hold no embedding, that of the model is read once more. Raises
    CheckpointError."""
    model = cast(Eagle3, build_model(Eagle3, config, context))
    taken = model.config.target_hidden_size or model.config.hidden_size
    if (taken, model.vocab_size) != (larger.config.hidden_size, larger.vocab_size):
        raise CheckpointError(
            f"it was made for a model with {taken} channels and {model.vocab_size} tokens, and this one has "
            f"{larger.config.hidden_size} and {larger.vocab_size}; give the head of this one"
        )
    stored = dict(find_tensors(directory))
    if "embed_tokens.weight" not in stored:
        stored["embed_tokens.weight"] = _embedding(larger, larger_directory)
    load_weights(model, directory, stored, read_tensors, on_progress=on_progress)
    if "d2t" in stored:
        offsets = read_tensors({"d2t": (stored["d2t"], ())})["d2t"].long()
        rows = model.config.draft_vocab_size or model.vocab_size
        ids = torch.arange(len(offsets)) + offsets
        if len(ids) != rows or not (int(ids.min()) >= 0 and int(ids.max()) < model.vocab_size):
            raise CheckpointError(f"its d2t does not lead from {rows} tokens to some of {model.vocab_size}")
        model.target_ids = ids.clone()
    elif model.config.draft_vocab_size not in (None, model.vocab_size):
        raise CheckpointError("its files hold no d2t, which says what tokens its head has")
    return model


def _embedding(larger: CausalLM, directory: Path) -> StoredTensor:
    for name, tensor in find_tensors(directory).items():
        if larger.parameter_of(name) in ("embedding.weight", "model.embedding.weight"):
            return tensor
    raise CheckpointError("its files hold no embedding, and neither do the model's in a form that it can take")
