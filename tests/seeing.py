"""Tiny random checkpoints of models that see, whole as they are on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import SHAPE, save_tokenizer

TEMPLATE = """\
{%%- for message in messages %%}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%%- if message['content'] is string %%}{{- message['content'] }}
{%%- else %%}{%%- for part in message['content'] %%}
{%%- if part['type'] == 'image' %%}{{- '%s' }}{%%- else %%}{{- part['text'] }}{%%- endif %%}
{%%- endfor %%}{%%- endif %%}{{- '<|im_end|>\\n' }}
{%%- endfor %%}
{%%- if add_generation_prompt %%}{{- '<|im_start|>assistant\\n' }}{%%- endif %%}"""
"""With %s for what stands for an image."""

TEXT = {**SHAPE, "vocab_size": 512, "max_position_embeddings": 2048, "num_hidden_layers": 2}

QWEN_SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "tokens_per_second": 2,
    "initializer_range": 0.2,
}
CLIP_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.2,
}


def save_seeing_checkpoint(directory: Path, kind: str) -> None:
    """kind: qwen2_5_vl or llava_next."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = (_qwen if kind == "qwen2_5_vl" else _llava)(directory)
    name = type(config).__name__.removesuffix("Config")
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor += 0.2 * torch.randn_like(tensor)
    model.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "do_sample": False}))


def _qwen(directory: Path) -> Any:
    from transformers import Qwen2_5_VLConfig

    save_tokenizer(directory, QWEN_SPECIAL, TEMPLATE % "<|vision_start|><|image_pad|><|vision_end|>")
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0},
        vision_config=QWEN_VISION,
        **{f"{each[2:-2].replace('pad', 'token')}_id": _id(directory, each) for each in QWEN_SPECIAL[2:]},
        vision_start_token_id=_id(directory, QWEN_SPECIAL[0]),
        vision_end_token_id=_id(directory, QWEN_SPECIAL[1]),
        tie_word_embeddings=False,
    )


def _llava(directory: Path) -> Any:
    from transformers import LlavaNextConfig

    save_tokenizer(directory, ["<image>"], TEMPLATE % "<image>\\n")
    settings = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 56}}
    settings |= {"crop_size": {"height": 56, "width": 56}}
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    (directory / "preprocessor_config.json").write_text(json.dumps(settings | {"image_grid_pinpoints": pinpoints}))
    return LlavaNextConfig(
        text_config={"model_type": "llama", **TEXT, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0},
        vision_config={"model_type": "clip_vision_model", **CLIP_VISION},
        image_token_index=_id(directory, "<image>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )


def _id(directory: Path, token: str) -> int:
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    return int(next(each["id"] for each in added if each["content"] == token))
