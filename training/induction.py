"""Heads that copy from before, ready at the beginning.

A model that repeats what it read needs a head that looks at the token before and, in a later layer, heads that look for
a token whose neighbor was the present one (https://arxiv.org/abs/2209.11895). By chance they appear after billions of
tokens, which is more than the demo model ever sees.
"""

from __future__ import annotations

import torch

from training.model import Attention, DemoModel

# How strongly biases of q and k pull to the token before, in that many of the fastest planes of the rotation.
PULL = 6.0
FAST_PLANES = 6
MATCH = 1.6
LAYERS_THAT_MATCH = (1, 2)
# How large what these heads add to the stream is.
NEIGHBOR, COPY = 0.1, 0.04


@torch.no_grad()
def start_heads(model: DemoModel) -> None:
    """Add these heads to a new model, each as the first of its layer."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    size = model.model.shape.head_dim
    see_token_before(attentions[0])
    pass_on(attentions[0], size, NEIGHBOR)
    slow = [*range(size // 4, size // 2), *range(3 * size // 4, size)]
    for part, attention in enumerate(attentions[layer] for layer in LAYERS_THAT_MATCH):
        for index, channel in enumerate(slow, part * len(slow)):
            attention.q_proj.weight[channel, index] += MATCH
            attention.k_proj.weight[channel, size + index] += MATCH
        pass_on(attention, 0, COPY)


def see_token_before(attention: Attention) -> None:
    """Give q and k biases that agree most where the rotation of one position lies between them."""
    size = attention.shape.head_dim
    angles = attention.shape.rope_theta ** -(torch.arange(FAST_PLANES) * 2 / size)
    attention.k_proj.bias[:FAST_PLANES] += PULL
    attention.q_proj.bias[:FAST_PLANES] += PULL * angles.cos()
    attention.q_proj.bias[size // 2 : size // 2 + FAST_PLANES] -= PULL * angles.sin()


def pass_on(attention: Attention, to: int, gain: float) -> None:
    """Let the first head read the first channels of what it sees and add them to the stream from channel `to` on."""
    size = attention.shape.head_dim
    channels = torch.arange(size)
    attention.v_proj.weight[channels, channels] += 1.0
    attention.o_proj.weight[to + channels, channels] += gain
