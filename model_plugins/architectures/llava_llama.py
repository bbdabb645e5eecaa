"""LLaVA-NeXT on Llama in the form of its own repository (https://github.com/haotian-liu/LLaVA), that of Vicuna 7B and
13B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_plugins.architectures.llava_next import LlavaConfig, LlavaEncoder, LlavaModel
from model_plugins.processors.llava import tower_config
from sophserve.config_rules import check_word
from sophserve.errors import CheckpointError
from sophserve.model.clip import ClipConfig, clip_names
from sophserve.model.config import parse_config
from sophserve.model.decoder import DECODER_NAMES
from sophserve.plugins import Register, hookimpl


@dataclass(frozen=True, kw_only=True)
class LlavaLlamaConfig(LlavaConfig):
    """mm_vision_tower: a folder of a CLIP model, or the name of the one that is known. Absent keys mean what LLaVA 1.5
    does, which is refused."""

    mm_vision_tower: str
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_hidden_size: int | None = None
    mm_projector_type: str = "linear"
    mm_patch_merge_type: str = "flat"
    mm_resampler_type: str | None = None
    mm_use_im_start_end: bool = False
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: list[Any] | None = None
    s2: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("mm_vision_select_feature", self.mm_vision_select_feature, ["patch"])
        check_word("mm_projector_type", self.mm_projector_type, ["mlp2x_gelu"])
        check_word("mm_patch_merge_type", self.mm_patch_merge_type, ["spatial_unpad"])
        check_word("image_aspect_ratio", self.image_aspect_ratio, ["anyres"])
        for key in ("mm_resampler_type", "mm_use_im_start_end", "s2"):
            if getattr(self, key):
                raise CheckpointError(f"config.json's {key} is {getattr(self, key)!r}, which is not supported")


class LlavaLlamaForCausalLM(LlavaModel[LlavaLlamaConfig]):
    """Llama that is given images by CLIP."""

    config_class = LlavaLlamaConfig
    checkpoint_names = (
        DECODER_NAMES
        | clip_names("model.vision_tower.vision_tower", "encoder.tower")
        | clip_names("model.vision_tower.vision_tower.vision_model", "encoder.tower")
        | {
            "model": "encoder",
            "model.mm_projector.0": "encoder.projector.up",
            "model.mm_projector.2": "encoder.projector.down",
        }
    )

    def make_encoder(self, config: dict[str, Any]) -> LlavaEncoder:
        vision = parse_config(ClipConfig, tower_config(config))
        if self.config.mm_hidden_size not in (None, vision.hidden_size):
            raise CheckpointError(
                f"config.json's mm_hidden_size is {self.config.mm_hidden_size}, but the hidden_size of the tower "
                f"{self.config.mm_vision_tower} is {vision.hidden_size}"
            )
        layers = [self.config.mm_vision_select_layer]
        return LlavaEncoder(self.context, vision, layers, self.config.hidden_size, "gelu")


@hookimpl
def register_architectures(register: Register) -> None:
    register("LlavaLlamaForCausalLM", LlavaLlamaForCausalLM)
