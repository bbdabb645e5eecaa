"""The model that is trained is the Qwen2 of transformers, and it learns."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from training.export import export
from training.induction import start_heads
from training.model import Attention, DemoModel, Shape, rotated
from training.optimizer import Optimizer, orthogonal
from training.text import trained_tokenizer
from training.train import schedule

SHAPE = Shape(vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, max_position_embeddings=128)


def test_a_checkpoint_is_the_qwen2_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DemoModel(SHAPE)
    for parameter in model.parameters():
        # What is rounded to bfloat16 in the file shall be the same here; biases are made as zeros.
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    export(model, SHAPE, trained_tokenizer(600, 1, 200), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 600, (2, 50))
    with torch.no_grad():
        ours = model.model(ids) @ model.model.embed_tokens.weight.T
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_documents_apart() -> None:
    torch.manual_seed(0)
    model = DemoModel(SHAPE)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    first, second = torch.randint(1, 600, (1, 20)), torch.randint(1, 600, (1, 9))
    together = torch.cat([first, torch.tensor([[0]]), second], 1)
    with torch.no_grad():
        # Rotary positions are relative: the second document is what it would be alone.
        torch.testing.assert_close(model.model(together, end=0)[:, -9:], model.model(second), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model.model(together)[:, -9:], model.model(second), rtol=1e-2, atol=1e-2)


def test_first_heads_find_the_token_before_and_what_followed_the_same_one() -> None:
    torch.manual_seed(0)
    model = DemoModel(Shape(vocab_size=600))
    start_heads(model)
    seen: list[torch.Tensor] = []

    def look(attention: Attention, given: tuple[torch.Tensor, ...]) -> None:
        x, cosines, sines, _ = given
        q, k = (
            rotated(made(x)[0, :, : attention.shape.head_dim], cosines, sines)
            for made in (attention.q_proj, attention.k_proj)
        )
        scores = q @ k.T / attention.shape.head_dim**0.5
        seen.append(scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1))

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(look)
    sequence = torch.randperm(600)[:50]
    with torch.no_grad():
        model.model(sequence.repeat(1, 2))
    before, matching, also_matching, ordinary = seen
    assert before.diagonal(-1).mean() > 0.9
    # In the second half, the token that followed the same one is 49 tokens back.
    assert matching.diagonal(-49)[1:].mean() > 0.5 and also_matching.diagonal(-49)[1:].mean() > 0.5
    assert ordinary.diagonal(-49)[1:].mean() < 0.1


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = DemoModel(SHAPE)
    optimizer = Optimizer(model)
    ids, learned = torch.randint(0, 600, (2, 33)), torch.ones(2, 33, dtype=torch.bool)
    losses = []
    for _ in range(30):
        loss = model.loss(ids, learned) / 64
        loss.backward()
        optimizer.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[0] > 6 and losses[-1] < 0.5


def test_orthogonal_steps() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 16, 48), (2, 48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.3


def test_schedule() -> None:
    factors = [schedule(step / 100) for step in range(100)]
    assert factors[0] < 0.1 and factors[2] > 0.97 and factors[50] == 0.5 and 0 < factors[99] < 0.05
