"""The trained model as a checkpoint that any program for Hugging Face checkpoints reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.model import DemoModel, Shape
from training.text import END, END_OF_TEXT, TEMPLATE


def export(model: DemoModel, shape: Shape, tokenizer: Tokenizer, directory: Path) -> None:
    """Write config.json, the weights in bfloat16, the tokenizer and the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    (directory / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    # save_file lets only the owner read it.
    (directory / "model.safetensors").chmod(0o644)
    end, end_of_text = tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": end_of_text,
        "eos_token_id": end,
        **asdict(shape),
    }
    _write(directory / "config.json", config)
    # Answers are short and sure: a low temperature keeps them so, and still tells another story each time.
    sampling = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    _write(directory / "generation_config.json", {"eos_token_id": [end, end_of_text], **sampling})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_position_embeddings,
    }
    _write(directory / "tokenizer_config.json", settings)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
