"""Adds to a tiny checkpoint of DeepSeek V3 the layer that predicts a further token, as theirs has it on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def with_further_layer(source: Path, target: Path, agreeing: float | None = None) -> Path:
    """A copy with such a layer of random weights. agreeing: what the model's own layers add to the embedding is made
    smaller by this factor, and the further layer passes the embedding on, so that both often say the same."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    tensors = load_file(target / "model.safetensors")
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    chance = torch.Generator().manual_seed(5)
    last, own = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    added = {
        name.replace(last, own): _like(tensor, chance) for name, tensor in tensors.items() if name.startswith(last)
    }
    names = ("enorm", "hnorm", "shared_head.norm")
    norms = [1 + 0.2 * torch.randn(hidden, generator=chance) for _ in names]
    added |= {f"{own}{name}.weight": norm for name, norm in zip(names, norms, strict=True)}
    added[f"{own}eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=chance) / hidden**0.5
    # Their files repeat both, and nobody reads them there.
    added[f"{own}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    added[f"{own}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    if agreeing is not None:
        added[f"{own}enorm.weight"] = torch.ones(hidden)
        added[f"{own}shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
        added[f"{own}eh_proj.weight"] = torch.eye(hidden, 2 * hidden)
        for name, tensor in (tensors | added).items():
            if name.endswith((".o_proj.weight", ".down_proj.weight")):
                tensor *= agreeing
        tensors["lm_head.weight"] *= 3  # so that some tokens are likely
    dtype = tensors["model.norm.weight"].dtype
    added = {name: tensor if "correction_bias" in name else tensor.to(dtype) for name, tensor in added.items()}
    save_file(tensors | added, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _like(tensor: Tensor, chance: torch.Generator) -> Tensor:
    """Other numbers that are as large."""
    values = tensor.float()
    return values.mean() + values.std() * torch.randn(values.shape, generator=chance)
