"""A tiny LLaVA-NeXT, ours and transformers', for tests."""

from __future__ import annotations

import json

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model_plugins.processors.llava import LlavaNextProcessor
from sophserve.checkpoint import read_config, read_preprocessor_config

TILE, PATCH, IMAGE_TOKEN = 56, 14, 500
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
# Width and height.
SIZES = [(28, 28), (1, 1), (300, 1), (97, 89), (53, 211), (112, 56), (56, 168), (113, 111), (640, 480)]


def picture(width, height):
    values = torch.randint(
        0, 256, (width * height * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(width)
    )
    return Image.frombytes("RGB", (width, height), bytes(values.tolist()))


def transformers_processor(tile=TILE, pinpoints=PINPOINTS, **settings):
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        **settings,
    )


def tensor_of(processor, image, detail="auto"):
    """What the server makes of an image, as the worker sees it, and its grid."""
    shape = processor.shape(*image.size, detail)
    values = processor.pixels(image, detail)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape.pixels), shape


def save_llava(directory, kind, text, vision, config):
    import transformers

    texts = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    settings = {"image_grid_pinpoints": PINPOINTS, "image_token_index": IMAGE_TOKEN} | config
    torch.manual_seed(0)
    model = transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            text_config=texts[kind](**TEXT | text),
            vision_config=transformers.CLIPVisionConfig(**VISION | vision),
            **settings,
        )
    )
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and "newline" not in name:
            tensor += 0.2 * torch.randn_like(tensor)
        elif "vision_tower" in name or "projector" in name:
            tensor += 0.15 * torch.randn_like(tensor)
    model.save_pretrained(directory)
    transformers_processor(pinpoints=settings["image_grid_pinpoints"]).save_pretrained(directory)
    return directory


def transformers_llava(directory):
    from transformers import LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()


def prompt_of(counts):
    """Text before, between and after images of so many tokens, and where these begin."""
    ids, starts = [7, 8, 9], []
    for number, count in enumerate(counts):
        starts.append(len(ids))
        ids += [IMAGE_TOKEN] * count + [20 + number, 30]
    return ids, starts


class Seeing:
    """A model and its processor."""

    def __init__(self, directory, open_model, dtype=torch.float32, processor=LlavaNextProcessor, **more):
        self.processor = processor(read_config(directory), read_preprocessor_config(directory))
        self.ours = open_model(directory, dtype, max_positions=1024, **more)

    def logprobs(self, images, chunk=10_000):
        tensors = [tensor_of(self.processor, image) for image in images]
        ids, starts = prompt_of([shape.tokens for _, shape in tensors])
        number = len(self.ours._lengths)
        for start, (pixels, shape) in zip(starts, tensors, strict=True):
            self.ours.give(number, start, self.ours.encode(pixels, shape.grid))
        return ids, self.ours.logprobs(ids, chunk)


@torch.inference_mode()
def their_logprobs(theirs, images, ids, pinpoints=PINPOINTS):
    made = transformers_processor(pinpoints=pinpoints)(images, return_tensors="pt")
    return theirs(torch.tensor([ids]), **made).logits[0].float().log_softmax(-1)


LLAMA_KEYS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "freeze_mm_mlp_adapter": False,
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": True,
    "use_mm_proj": True,
}


def save_original(source, target, tower, changes=None):
    """Write a checkpoint as LLaVA's own repository defines it, and the configuration of its tower into a folder."""
    config = json.loads((source / "config.json").read_text())
    tower.mkdir()
    target.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config["vision_config"]}))
    swapped = [[width, height] for height, width in config["image_grid_pinpoints"]]
    own = {"mm_vision_tower": str(tower), "image_grid_pinpoints": swapped}
    (target / "config.json").write_text(json.dumps(config["text_config"] | LLAMA_KEYS | own | (changes or {})))
    names = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
    }
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        tensors[names[prefix] + name.removeprefix(prefix)] = tensor
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
