"""Hugging Face transformers, the model alone: its forward pass and cache, as `generate` uses them."""

from __future__ import annotations

import time

import torch

from benchmarks.peers.protocol import DECODE_STEPS, prompt, serve


class Transformers:
    """A causal language model in its checkpoint's dtype."""

    def __init__(self, model: str, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        self.prefill(16)

    @torch.inference_mode()
    def prefill(self, context: int) -> float:
        ids = torch.tensor([prompt(context)])
        start = time.perf_counter()
        self._model(ids, use_cache=True, logits_to_keep=1).logits.argmax()
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, batch: int, context: int) -> float:
        """On a cache of random keys and values, for what they are does not change the time."""
        from transformers import DynamicCache

        config = self._model.config
        cache = DynamicCache(config=config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for layer in range(config.num_hidden_layers):
            shape = (batch, config.num_key_value_heads, context, head_dim)
            cache.update(*(torch.randn(shape, dtype=self._model.dtype) for _ in range(2)), layer)
        token = torch.full((batch, 1), 500)
        for step in range(DECODE_STEPS + 2):
            if step == 2:
                start = time.perf_counter()
            output = self._model(token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / DECODE_STEPS


if __name__ == "__main__":
    serve(Transformers)
