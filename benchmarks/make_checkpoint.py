"""Make a checkpoint with random weights at a real model's shape, for measuring: `make_checkpoint.py SHAPE DIRECTORY`.

Needs transformers. The tokenizer is copied from `--tokenizer`, a directory with tokenizer.json and
tokenizer_config.json, or trained on this file; the ids beyond are made-up words.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "tiny": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "deep": {
        "vocab_size": 8192,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    },
    "qwen2-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    },
    "qwen2-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokenizer", type=Path, help="a directory to copy the tokenizer from")
    parser.add_argument("--gptq", action="store_true", help="4-bit layers of random codes, groups of 128")
    options = parser.parse_args()
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen2Config(**{"tie_word_embeddings": True, **SHAPES[options.shape]}, rope_parameters=rope)
    torch.set_default_dtype(getattr(torch, options.dtype))
    if options.gptq:
        save_gptq(config, options.directory)
    else:
        Qwen2ForCausalLM(config).save_pretrained(options.directory)
    if options.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (options.tokenizer / name).exists():
                shutil.copy(options.tokenizer / name, options.directory)
    else:
        train_tokenizer(options.directory, config.vocab_size)
    size = sum(path.stat().st_size for path in options.directory.iterdir())
    print(f"{options.directory}: {options.shape}, {size / 2**20:.0f} MiB")


def save_gptq(config: Qwen2Config, directory: Path) -> None:
    """Random codes instead of rounded weights, which would take long; a file for each layer."""
    directory.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen2ForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        tensors = files.setdefault(f"model-{layer}.safetensors", {})
        if name.endswith("_proj.weight"):
            outputs, inputs = shape
            words = lambda *size: torch.randint(-(2**31), 2**31, size, dtype=torch.int32)  # noqa: E731
            groups = -(-inputs // 128)
            tensors[name.removesuffix("weight") + "qweight"] = words(inputs // 8, outputs)
            zeros = torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32)
            tensors[name.removesuffix("weight") + "qzeros"] = zeros
            scales = torch.full((groups, outputs), 0.02 / 4.6)  # codes have a deviation of 4.6
            tensors[name.removesuffix("weight") + "scales"] = scales.half()
            tensors[name.removesuffix("weight") + "g_idx"] = (torch.arange(inputs) // 128).int()
        else:
            tensors[name] = torch.ones(shape) if "norm" in name else torch.randn(shape) / 50
    for file, tensors in files.items():
        save_file(tensors, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    settings = config.to_dict() | {"architectures": ["Qwen2ForCausalLM"], "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}, indent=2))


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
