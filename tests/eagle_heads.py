"""EAGLE-3 heads for tiny checkpoints, with random weights, in both layouts, and what they say by the definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, INNER, EPS, THETA = 4, 2, 24, 80, 1e-5, 5000.0
LAYERS = {"authors": [0, 1, 2], "speculators": [0, 1, 3]}


def write_head(
    model: Path, target: Path, layout: str = "authors", tokens: list[int] | None = None, **config: Any
) -> Path:
    """tokens: those that it can say, in order; by default all."""
    target.mkdir()
    settings = json.loads((model / "config.json").read_text())
    hidden, vocab = settings["hidden_size"], settings["vocab_size"]
    chance = torch.Generator().manual_seed(9)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=chance) * 1.5 / columns**0.5

    def norm() -> Tensor:
        return 1 + 0.2 * torch.randn(hidden, generator=chance)

    layer = {
        "input_layernorm": norm(),
        "hidden_norm": norm(),
        "post_attention_layernorm": norm(),
        "self_attn.q_proj": matrix(HEADS * HEAD_DIM, 2 * hidden),
        "self_attn.k_proj": matrix(KV_HEADS * HEAD_DIM, 2 * hidden),
        "self_attn.v_proj": matrix(KV_HEADS * HEAD_DIM, 2 * hidden),
        "self_attn.o_proj": matrix(hidden, HEADS * HEAD_DIM),
        "mlp.gate_proj": matrix(INNER, hidden),
        "mlp.up_proj": matrix(INNER, hidden),
        "mlp.down_proj": matrix(hidden, INNER),
    }
    prefix = "midlayer" if layout == "authors" else "layers.0"
    tensors = {f"{prefix}.{name}.weight": tensor for name, tensor in layer.items()}
    tensors["fc.weight"] = matrix(hidden, 3 * hidden)
    tensors["norm.weight"] = norm()
    tensors["lm_head.weight"] = 2 * matrix(len(tokens or range(vocab)), hidden)
    if tokens:
        tensors["d2t"] = torch.tensor(tokens) - torch.arange(len(tokens))
        tensors["t2d"] = torch.tensor([token in tokens for token in range(vocab)])
    if layout == "speculators":
        tensors["embed_tokens.weight"] = matrix(vocab, hidden) * 4
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    own: dict[str, Any] = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": INNER,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": EPS, "rope_theta": THETA,
    }  # fmt: skip
    more = {"draft_vocab_size": len(tokens or range(vocab)), "torch_dtype": "float32"}
    layers = {"eagle_aux_hidden_state_layer_ids": LAYERS[layout]}
    if layout == "authors":
        written = own | more | {"architectures": ["LlamaForCausalLMEagle3"], "eagle_config": layers}
    else:
        names = {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"}
        written = names | more | layers | {"transformer_layer_config": own, "norm_before_residual": True}
    (target / "config.json").write_text(json.dumps(written | config))
    return target


@torch.inference_mode()
def says(head: Path, model: Any, ids: list[int], count: int, layout: str = "authors") -> list[int]:
    """The next tokens by the definition of EAGLE-3, one after another. model: of transformers."""
    tensors = load_file(head / "model.safetensors")
    prefix = "midlayer." if layout == "authors" else "layers.0."
    layer = {name.removeprefix(prefix)[:-7]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    embedding = tensors.get("embed_tokens.weight", model.get_input_embeddings().weight)
    states: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    hidden = list(model(torch.tensor([ids[:-1]]), output_hidden_states=True).hidden_states[:-1])
    hook.remove()
    hidden.append(states[0])
    rows = F.linear(torch.cat([hidden[each][0] for each in LAYERS[layout]], -1), tensors["fc.weight"])
    tokens, found = ids[1:], []
    for _ in range(count):
        made = _layer(layer, embedding[torch.tensor(tokens)], rows, adds_normalised=layout == "speculators")[-1]
        best = int(F.linear(_norm(made, tensors["norm.weight"]), tensors["lm_head.weight"]).argmax())
        found.append(best + int(tensors["d2t"][best]) if "d2t" in tensors else best)
        tokens, rows = [*tokens, found[-1]], torch.cat([rows, made[None]])
    return found


def _layer(weights: dict[str, Tensor], tokens: Tensor, hidden: Tensor, *, adds_normalised: bool) -> Tensor:
    normalised = _norm(hidden, weights["hidden_norm"])
    x = torch.cat([_norm(tokens, weights["input_layernorm"]), normalised], -1)

    def heads(name: str, count: int) -> Tensor:
        return F.linear(x, weights[f"self_attn.{name}_proj"]).view(len(x), count, HEAD_DIM).transpose(0, 1)

    q, k = _turned(heads("q", HEADS)), _turned(heads("k", KV_HEADS))
    repeats = HEADS // KV_HEADS
    k, v = k.repeat_interleave(repeats, 0), heads("v", KV_HEADS).repeat_interleave(repeats, 0)
    scores = (q @ k.transpose(1, 2)) / HEAD_DIM**0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
    seen = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    x = (normalised if adds_normalised else hidden) + F.linear(seen, weights["self_attn.o_proj"])
    y = _norm(x, weights["post_attention_layernorm"])
    y = F.silu(F.linear(y, weights["mlp.gate_proj"])) * F.linear(y, weights["mlp.up_proj"])
    return x + F.linear(y, weights["mlp.down_proj"])


def _turned(x: Tensor) -> Tensor:
    """By the position of each row, as Llama does."""
    half = HEAD_DIM // 2
    angles = torch.arange(x.shape[1])[:, None] / THETA ** (torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * weight
