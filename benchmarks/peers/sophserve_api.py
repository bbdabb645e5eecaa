"""sophserve through its embedded API."""

from __future__ import annotations

from benchmarks.peers.protocol import Generator, prompt, serve


class Sophserve(Generator):
    """The engine and its worker process."""

    def __init__(self, model: str, threads: int) -> None:
        from sophserve import LLM, SamplingParams

        self._params = SamplingParams
        # Without guesses: peers make none, and random weights repeat themselves.
        self._llm = LLM(model, max_model_len=8192 + 64, kv_cache_memory="2GiB", speculation="off")
        self.generate([prompt(64)] * 2, 2)

    def generate(self, prompts: list[list[int]], tokens: int) -> None:
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True)
        self._llm.generate(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    serve(Sophserve)
