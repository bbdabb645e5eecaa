"""DeepSeek V3, V3.1 and R1 (https://arxiv.org/abs/2412.19437): V2 whose experts are chosen with a bias."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from model_plugins.architectures.deepseek_v2 import DeepseekV2Config, DeepseekV2ForCausalLM
from sophserve.model.decoder import Size
from sophserve.model.rope import Positive
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(DeepseekV2Config):
    """V2's keys. The weights of a token's experts are scaled whether they are normalised or not."""

    first_k_dense_replace: Annotated[int, Meta(ge=0)] = 3
    n_group: Size | None = 8
    topk_group: Size | None = 4
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 2.5

    @property
    def weight_scale(self) -> float:
        return self.routed_scaling_factor


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """V2 with other ways to choose experts. Layers that predict further tokens are not run."""

    config_class = DeepseekV3Config

    def left_out(self, stored: Collection[str]) -> set[str]:
        """What is of further layers, which join (eh_proj) the embedding of a token to a hidden state (section 2.2).
        config.json says num_nextn_predict_layers: 1 also where the files have none."""
        of_layer = {name: int(match[1]) for name in stored if (match := _LAYER.match(name))}
        joining = {layer for name, layer in of_layer.items() if ".eh_proj." in name}
        layers = self.config.num_hidden_layers
        return {name for name, layer in of_layer.items() if layer >= layers and layer in joining}


_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


@hookimpl
def register_architectures(register: Register) -> None:
    register("DeepseekV3ForCausalLM", DeepseekV3ForCausalLM)
    register("DeepseekV3Model", DeepseekV3ForCausalLM)
