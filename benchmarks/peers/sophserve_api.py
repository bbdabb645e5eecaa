"""sophserve through its embedded API."""

from __future__ import annotations

import time

from benchmarks.peers.protocol import decode_by_difference, prompt, serve


class Sophserve:
    """The engine and its worker process."""

    def __init__(self, model: str, threads: int) -> None:
        from sophserve import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(model, max_model_len=8192 + 64, kv_cache_memory="2GiB")
        self._generate([prompt(64)] * 2, 2)

    def prefill(self, context: int) -> float:
        prompts = [prompt(context)]
        start = time.perf_counter()
        self._generate(prompts, 1)
        return time.perf_counter() - start

    def decode(self, batch: int, context: int) -> float:
        return decode_by_difference(self._generate, batch, context)

    def _generate(self, prompts: list[list[int]], tokens: int) -> None:
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True)
        self._llm.generate(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    serve(Sophserve)
