"""Trains the demo model: `python -m training.train DIRECTORY`.

The corpus is made while the model learns, so no row comes twice, and the same seed gives the same model on the same
machine. With --go-on the model in DIRECTORY learns more, from a corpus with another seed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.export import export
from training.induction import start_heads
from training.model import DemoModel, Shape
from training.optimizer import Optimizer
from training.text import END_OF_TEXT, Tokens, rows, trained_tokenizer

TOKENS_A_STEP = 4096
# What runs through the model at once: little enough for the caches of a processor.
TOKENS_AT_ONCE = 1024
# Up to which part of the steps rows have which length: most is learned from short ones, which are quicker.
LENGTHS = ((0.7, 256), (0.94, 512), (0.98, 1024), (1.0, 2048))
TEXTS_FOR_TOKENIZER = 30_000

Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    """Train, reporting the loss, and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=4500, help="each of 4096 tokens")
    parser.add_argument("--rate", type=float, default=1.0, help="part of the full learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--go-on", action="store_true", help="with the model that is in DIRECTORY")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_flush_denormal(True)
    shape = Shape()
    model = DemoModel(shape)
    if given.go_on:
        tokenizer = Tokenizer.from_file(str(given.directory / "tokenizer.json"))
        model.load_state_dict(load_file(given.directory / "model.safetensors"))
    else:
        tokenizer = trained_tokenizer(shape.vocab_size, given.seed, TEXTS_FOR_TOKENIZER)
        start_heads(model)
    model.to(given.device)
    end = tokenizer.token_to_id(END_OF_TEXT)
    optimizer = Optimizer(model)
    model.model.compile(dynamic=False)
    batches = {length: batched(rows(tokenizer, given.seed + length, length + 1)) for _, length in LENGTHS}
    started = time.monotonic()
    for step in range(given.steps):
        length = next(length for end, length in LENGTHS if step < end * given.steps)
        parts = list(itertools.islice(batches[length], TOKENS_A_STEP // max(TOKENS_AT_ONCE, length)))
        count = sum(int(learned[:, 1:].sum()) for _, learned in parts)
        total = 0.0
        for ids, learned in parts:
            loss = model.loss(ids.to(given.device), learned.to(given.device), end) / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step(given.rate * schedule(step / given.steps))
        if step % 20 == 0:
            rate = (step + 1) * TOKENS_A_STEP / (time.monotonic() - started)
            print(f"step {step}: loss {total:.3f}, {rate:.0f} tokens/s", flush=True)
        if step % 250 == 249 or step == given.steps - 1:
            export(model, shape, tokenizer, given.directory)


def batched(source: Iterator[Tokens]) -> Iterator[Batch]:
    """Rows put together to what runs at once: ids and which are to be learned, `[rows, tokens]`."""
    while True:
        first = next(source)
        count = max(1, TOKENS_AT_ONCE // len(first[0]))
        ids, learned = zip(first, *itertools.islice(source, count - 1), strict=True)
        yield torch.tensor(ids), torch.tensor(learned)


def schedule(done: float) -> float:
    """Which part of the full learning rate holds when a part of the steps is done: up, then straight to nothing."""
    return min(1.0, done / 0.02 + 0.02) * (1 - done)


if __name__ == "__main__":
    main()
