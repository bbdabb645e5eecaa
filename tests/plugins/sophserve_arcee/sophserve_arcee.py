"""Arcee's AFM: Llama whose MLP has no gate and squares its activation (https://arxiv.org/abs/2109.08668)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sophserve.errors import CheckpointError
from sophserve.model.context import ModelContext
from sophserve.model.decoder import DECODER_NAMES, Attention, CausalLM, DecoderConfig, DecoderLayer
from sophserve.model.layers import Linear
from sophserve.model.module import Module
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class ArceeConfig(DecoderConfig):
    """attention_bias: on all four projections of attention. mlp_bias: on both of the MLP."""

    hidden_act: str = "relu2"
    attention_bias: bool = False
    mlp_bias: bool = False


class SquaredMLP(Module):
    """`down(relu(up(x)) ** 2)`."""

    def __init__(self, context: ModelContext, config: ArceeConfig) -> None:
        if config.hidden_act != "relu2":
            raise CheckpointError(f"config.json's hidden_act {config.hidden_act!r} is not supported; supported: relu2")
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up = Linear(context, hidden, inner, bias=bias, shard="column")
        self.down = Linear(context, inner, hidden, bias=bias, shard="row")

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same shape."""
        return self.down(self.up(x).relu().square())


class ArceeForCausalLM(CausalLM[ArceeConfig]):
    """The plain pre-norm decoder with an MLP of its own."""

    config_class = ArceeConfig
    operators = CausalLM.operators - {"gated_mlp"}
    checkpoint_names = DECODER_NAMES | {
        "model.layers.{}.mlp.up_proj": "layers.{}.mlp.up",
        "model.layers.{}.mlp.down_proj": "layers.{}.mlp.down",
    }

    def make_layer(self, index: int) -> DecoderLayer:
        """All layers are alike."""
        bias = self.config.attention_bias
        attention = Attention(self.context, self.config, self.rope, qkv_bias=bias, output_bias=bias)
        return DecoderLayer(self.context, self.config, attention, SquaredMLP(self.context, self.config))


@hookimpl
def register_architectures(register: Register) -> None:
    """Add Arcee's AFM."""
    register("ArceeForCausalLM", ArceeForCausalLM)
