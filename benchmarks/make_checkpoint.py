"""Make a checkpoint with random weights at a real model's shape, for measuring: `make_checkpoint.py SHAPE DIRECTORY`.

Needs transformers. The tokenizer is copied from `--tokenizer`, a directory with tokenizer.json and
tokenizer_config.json, or trained on this file; the ids beyond are made-up words. Matrices have the scale that keeps
products near one, and what layers add is of the embedding's size, so that routers choose by the token.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e6}
QWEN2: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": True, "rope_parameters": DEFAULT_ROPE}
QWEN2_MOE: dict[str, Any] = {"model_type": "qwen2_moe", "tie_word_embeddings": False, "rope_parameters": DEFAULT_ROPE}
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "tie_word_embeddings": False,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 16384,
    "num_nextn_predict_layers": 0,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": QWEN2
    | {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "deep": QWEN2
    | {
        "vocab_size": 8192,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    },
    "qwen2-0.5b": QWEN2
    | {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    },
    "qwen2-mini": QWEN2
    | {
        "vocab_size": 32768,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
    },
    "qwen2-7b": QWEN2
    | {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "qwen2moe-tiny": QWEN2_MOE
    | {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
        "max_position_embeddings": 16384,
    },
    "qwen2moe-mini": QWEN2_MOE
    | {
        "vocab_size": 32768,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 1024,
        "max_position_embeddings": 16384,
    },
    "deepseek-tiny": DEEPSEEK
    | {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
    },
    "deepseek-mini": DEEPSEEK
    | {
        "vocab_size": 32768,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 768,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 768,
        "first_k_dense_replace": 2,
        "n_group": 8,
        "topk_group": 4,
    },
}
# Real towers and projectors before decoders that fit anywhere.
SHAPES |= {
    "qwen2.5-vl-mini": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "text_config": SHAPES["qwen2-0.5b"]
        | {"model_type": "qwen2_5_vl_text", "rope_parameters": DEFAULT_ROPE | {"mrope_section": [8, 12, 12]}},
        "vision_config": {"hidden_size": 1280, "out_hidden_size": 896, "tokens_per_second": 2},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    },
    "llava-next-mini": {
        "model_type": "llava_next",
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        },
        "image_token_index": 32000,
    },
}
CLIP_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-mini": CLIP_PIXELS
    | {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056},
    "llava-next-mini": CLIP_PIXELS
    | {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INDEX = "model.safetensors.index.json"
DRAFTED = ("model-0.safetensors", "model-rest.safetensors")
SURE = 8.0
"""How much larger a head is made whose answers are to be guessed: else none of its tokens is likely."""
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
QUANTIZATION = {"gptq": GPTQ, "fp8": FP8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokenizer", type=Path, help="a directory to copy the tokenizer from")
    parser.add_argument(
        "--mtp",
        type=float,
        metavar="SHARE",
        help="DeepSeek: with a layer for further tokens, which says what follows a token by its embedding alone; what "
        "other layers add to that is made smaller by SHARE, so that they mostly say the same",
    )
    parser.add_argument(
        "--draft",
        type=float,
        metavar="SHARE",
        help="with a model of its first layer alone beside it, DIRECTORY-draft, that guesses what it says; what layers "
        "add is made smaller by SHARE, so that both often say the same",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--gptq", action="store_true", help="4-bit layers of random codes, groups of 128")
    kind.add_argument("--fp8", action="store_true", help="float8 layers, blocks of 128 x 128")
    options = parser.parse_args()
    if options.mtp is not None and SHAPES[options.shape]["model_type"] != DEEPSEEK["model_type"]:
        parser.error("--mtp is for the shapes of DeepSeek; leave it out")
    if options.draft is not None and SHAPES[options.shape].get("tie_word_embeddings", True):
        parser.error("--draft is for shapes with a head of their own, such as qwen2-mini; leave it out")
    torch.manual_seed(0)
    quantized = "gptq" if options.gptq else "fp8" if options.fp8 else None
    save(SHAPES[options.shape], options.directory, getattr(torch, options.dtype), quantized, options.mtp, options.draft)
    if options.shape in PREPROCESSORS:
        settings = json.dumps(PREPROCESSORS[options.shape], indent=2)
        (options.directory / "preprocessor_config.json").write_text(settings)
    if options.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (options.tokenizer / name).exists():
                shutil.copy(options.tokenizer / name, options.directory)
    else:
        shape = SHAPES[options.shape]
        train_tokenizer(options.directory, shape.get("text_config", shape)["vocab_size"])
    if options.draft is not None:
        save_draft(options.directory, options.directory.with_name(f"{options.directory.name}-draft"))
    size = sum(path.stat().st_size for path in options.directory.iterdir())
    print(f"{options.directory}: {options.shape}, {size / 2**20:.0f} MiB")


def save(
    shape: dict[str, Any],
    directory: Path,
    dtype: torch.dtype,
    quantized: str | None,
    mtp: float | None = None,
    draft: float | None = None,
) -> None:
    """Write config.json and a file for each layer; quantized is a key of QUANTIZATION or None. mtp, draft: the
    options."""
    directory.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        sees = "vision_config" in shape or "image_token_index" in shape
        model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_config(config)
    files: dict[str, dict[str, torch.Size]] = {}
    names = dict(names_on_disk(model))
    if mtp is not None:
        names |= further_layer(names, config.num_hidden_layers, config.hidden_size)
    for name, size in names.items():
        file = f"model-{name.split('.')[2]}.safetensors" if ".layers." in name else "model-rest.safetensors"
        files.setdefault(file, {})[name] = size
    weight_map = {}
    for file, sizes in files.items():
        tensors: dict[str, Tensor] = {}
        for name, size in sizes.items():
            tensors |= make_tensors(
                name, size, dtype, quantized, config.get_text_config().hidden_size, draft if mtp is None else mtp
            )
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    settings = config.to_dict() | {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    if quantized:
        settings["quantization_config"] = QUANTIZATION[quantized]
    if mtp is not None:
        settings["num_nextn_predict_layers"] = 1
    (directory / "config.json").write_text(json.dumps(settings, indent=2))


def save_draft(source: Path, target: Path) -> None:
    """The model of the first layer of another."""
    target.mkdir(parents=True, exist_ok=True)
    settings, index = (json.loads((source / name).read_text()) for name in ("config.json", INDEX))
    weight_map = {name: file for name, file in index["weight_map"].items() if file in DRAFTED}
    settings |= {"num_hidden_layers": 1, "layer_types": None}
    (target / "config.json").write_text(json.dumps(settings, indent=2))
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in (*DRAFTED, "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)


def names_on_disk(model: torch.nn.Module) -> Iterator[tuple[str, torch.Size]]:
    """Names and sizes, a tensor for each expert: transformers stacks them in memory alone."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        prefix, stacked, part = name.rpartition(".experts.")
        if not stacked:
            yield _as_published(name, model.config.model_type), tensor.shape
            continue
        outputs, inputs = tensor.shape[1:]
        size = torch.Size([outputs // 2 if part == "gate_up_proj" else outputs, inputs])
        for expert in range(tensor.shape[0]):
            for each in ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,):
                yield f"{prefix}.experts.{expert}.{each}.weight", size


def further_layer(names: dict[str, torch.Size], layers: int, hidden: int) -> dict[str, torch.Size]:
    """Those of a layer that predicts a further token, which has what the last one has."""
    last, own = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    found = {name.replace(last, own): size for name, size in names.items() if name.startswith(last)}
    norms = {f"{own}{name}.weight": torch.Size([hidden]) for name in ("enorm", "hnorm", "shared_head.norm")}
    return found | norms | {f"{own}eh_proj.weight": torch.Size([hidden, 2 * hidden])}


def _as_published(name: str, model_type: str) -> str:
    """The name that a model's files have where it is published."""
    if model_type == "qwen2_5_vl":
        return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
    if model_type == "llava_next" and name == "lm_head.weight":
        return "language_model.lm_head.weight"
    if model_type == "llava_next":
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    return name


def make_tensors(
    name: str, size: torch.Size, dtype: torch.dtype, quantized: str | None, hidden: int, mtp: float | None = None
) -> dict[str, Tensor]:
    """What stands in the file for one of the model's tensors."""
    if "norm" in name:
        return {name: torch.ones(size, dtype=dtype)}
    if name.endswith("e_score_correction_bias"):
        return {name: torch.randn(size) / 10}
    if name.endswith("eh_proj.weight"):
        return {name: torch.eye(*size, dtype=dtype)}
    deviation = size[-1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation *= hidden**-0.5 * (1.0 if mtp is None else mtp)
    if name == "lm_head.weight" and mtp is not None:
        deviation *= SURE
    if quantized and re.search(r"_proj(_with_mqa)?\.weight$", name):
        stem = name.removesuffix("weight")
        parts = (gptq_codes if quantized == "gptq" else float8_blocks)(size, deviation)
        return {stem + part: tensor for part, tensor in parts.items()}
    return {name: (torch.randn(size) * deviation).to(dtype)}


def gptq_codes(size: torch.Size, deviation: float) -> dict[str, Tensor]:
    """Random codes instead of rounded weights, which would take long."""
    outputs, inputs = size
    groups = -(-inputs // 128)
    return {
        "qweight": torch.randint(-(2**31), 2**31, (inputs // 8, outputs), dtype=torch.int32),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, outputs), deviation / 4.6, dtype=torch.float16),  # codes have a deviation of 4.6
        "g_idx": (torch.arange(inputs) // 128).int(),
    }


def float8_blocks(size: torch.Size, deviation: float) -> dict[str, Tensor]:
    """Codes of deviation 64, far from the largest, 448."""
    blocks = [-(-length // 128) for length in size]
    return {
        "weight": (torch.randn(size) * 64).to(torch.float8_e4m3fn),
        "weight_scale_inv": torch.full(blocks, deviation / 64, dtype=torch.float32),
    }


def train_tokenizer(directory: Path, size: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(), trainer)
    tokenizer.add_tokens([f" word{number}" for number in range(size - tokenizer.get_vocab_size())])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "do_sample": False}))


if __name__ == "__main__":
    main()
