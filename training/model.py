"""The demo model in plain PyTorch: Qwen2 (https://arxiv.org/abs/2407.10671), named as its checkpoints name tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of the model, named as in config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_attention_heads


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and biases on q, k and v."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.k_proj = nn.Linear(shape.hidden_size, width)
        self.v_proj = nn.Linear(shape.hidden_size, width)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, seen: Tensor | None) -> Tensor:
        """x: `[batch, tokens, hidden]`; the angles' cosines and sines: `[tokens, head_dim]`; which tokens each sees, by
        default all before it: `[batch, 1, tokens, tokens]`."""
        q, k, v = (
            projected.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = rotated(k, cosines, sines).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        q = rotated(q, cosines, sines)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x `[..., tokens, head_dim]` turned by its positions' angles, halves paired."""
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


class GatedMLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[batch, tokens, hidden]`."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = GatedMLP(shape)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, seen: Tensor | None) -> Tensor:
        """x: `[batch, tokens, hidden]`."""
        x = x + self.self_attn(self.input_layernorm(x), cosines, sines, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers, norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, ids: Tensor, end: int | None = None) -> Tensor:
        """Hidden states `[batch, tokens, hidden]` of token ids `[batch, tokens]`. Nothing behind the token `end` sees
        what is before it."""
        exponents = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]), self.shape.rope_theta**-exponents).repeat(1, 2)
        cosines, sines = angles.cos().to(ids.device), angles.sin().to(ids.device)
        seen = None
        if end is not None:
            ends = (ids == end).int()
            document = ends.cumsum(1) - ends
            seen = (document[:, None, :, None] == document[:, None, None, :]).tril()
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cosines, sines, seen)
        return self.norm(x)


class DemoModel(nn.Module):
    """The decoder under the name that checkpoints give it; the head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        for name, parameter in self.named_parameters():
            # Layers begin by adding nothing.
            if name.endswith((".bias", "o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)

    def loss(self, ids: Tensor, learned: Tensor, end: int | None = None) -> Tensor:
        """Sum of the cross-entropies of the tokens to be learned, the first of a row aside; both `[batch, tokens]`."""
        learned = learned[:, 1:]
        logits = functional.linear(self.model(ids[:, :-1], end)[learned], self.model.embed_tokens.weight)
        return functional.cross_entropy(logits, ids[:, 1:][learned], reduction="sum")
