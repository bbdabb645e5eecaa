"""The same model written with torch's own operators and nothing else: what a plain port to torch reaches.

F.linear, F.rms_norm, scaled_dot_product_attention over one preallocated cache, weights fused as servers fuse them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.protocol import DECODE_STEPS, prompt, serve


class TorchModel:
    """A Llama or Qwen2 checkpoint."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        config = json.loads((Path(model) / "config.json").read_text())
        self.heads, self.hidden = config["num_attention_heads"], config["hidden_size"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.head_dim = config.get("head_dim") or self.hidden // self.heads
        self.eps = config["rms_norm_eps"]
        self.layers = config["num_hidden_layers"]
        weights: dict[str, Tensor] = {}
        for file in sorted(Path(model).glob("*.safetensors")):
            weights |= load_file(file)
        self.table, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = weights.get("lm_head.weight", self.table)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name, kind in [("self_attn.qkv", "qkv"), ("mlp.gate_up", "gate up")]:
                block = name.split(".")[0]
                parts = [f"{prefix}{block}.{part}_proj." for part in (kind.split() if " " in kind else kind)]
                for suffix in ("weight", "bias"):
                    if parts[0] + suffix in weights:
                        weights[f"{prefix}{name}.{suffix}"] = torch.cat([weights.pop(p + suffix) for p in parts])
        self.weights = weights
        theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
        frequencies = theta ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.outer(torch.arange(8192 + 64), frequencies)
        angles = torch.cat([angles, angles], -1)
        self.cos, self.sin = angles.cos().to(self.table.dtype), angles.sin().to(self.table.dtype)
        self.prefill(16)

    def cache(self, batch: int, length: int) -> Tensor:
        return torch.randn(self.layers, 2, batch, self.kv_heads, length, self.head_dim, dtype=self.table.dtype)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        end = start + x.shape[2]
        low, high = x.chunk(2, -1)
        return x * self.cos[start:end] + torch.cat([-high, low], -1) * self.sin[start:end]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        grouped = self.heads != self.kv_heads
        if q.shape[2] > 1:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=causal, enable_gqa=grouped)
        # The heads that share keys stand as queries beside each other, which torch computes many times faster.
        packed = q.reshape(q.shape[0], self.kv_heads, -1, self.head_dim)
        return F.scaled_dot_product_attention(packed, keys, values).reshape(q.shape)

    def forward(self, ids: Tensor, cache: Tensor, start: int) -> Tensor:
        """ids `[batch, length]` at positions start on; returns the next ids `[batch, 1]`."""
        batch, length = ids.shape
        x = F.embedding(ids, self.table)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            w = self.weights
            y = F.rms_norm(x, (self.hidden,), w[prefix + "input_layernorm.weight"], self.eps)
            qkv = F.linear(y, w[prefix + "self_attn.qkv.weight"], w.get(prefix + "self_attn.qkv.bias"))
            q, k, v = (
                qkv.view(batch, length, -1, self.head_dim)
                .transpose(1, 2)
                .split([self.heads, self.kv_heads, self.kv_heads], 1)
            )
            cache[layer, 0, :, :, start : start + length] = self.rotate(k, start)
            cache[layer, 1, :, :, start : start + length] = v
            keys, values = cache[layer, :, :, :, : start + length]
            y = self.attend(self.rotate(q, start), keys, values, causal=start == 0)
            x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), w[prefix + "self_attn.o_proj.weight"])
            y = F.rms_norm(x, (self.hidden,), w[prefix + "post_attention_layernorm.weight"], self.eps)
            gate, up = F.linear(y, w[prefix + "mlp.gate_up.weight"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w[prefix + "mlp.down_proj.weight"])
        x = F.rms_norm(x[:, -1:], (self.hidden,), self.norm, self.eps)
        return F.linear(x, self.head).argmax(-1)

    @torch.inference_mode()
    def prefill(self, context: int) -> float:
        ids, cache = torch.tensor([prompt(context)]), self.cache(1, context)
        start = time.perf_counter()
        self.forward(ids, cache, 0)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, batch: int, context: int) -> float:
        cache = self.cache(batch, context + DECODE_STEPS + 2)
        ids = torch.full((batch, 1), 500)
        for step in range(DECODE_STEPS + 2):
            if step == 2:
                start = time.perf_counter()
            ids = self.forward(ids, cache, context + step)
        return (time.perf_counter() - start) / DECODE_STEPS


if __name__ == "__main__":
    serve(TorchModel)
