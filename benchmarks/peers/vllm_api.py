"""vLLM's CPU build through its embedded API, with its default options."""

from __future__ import annotations

import os

from benchmarks.peers.protocol import Generator, prompt, serve


class Vllm(Generator):
    """The engine."""

    def __init__(self, model: str, threads: int) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]

        self._params = SamplingParams
        self._llm = LLM(
            model, dtype="bfloat16", max_model_len=8192 + 64, max_num_seqs=64, enable_prefix_caching=True, seed=0
        )
        self.generate([prompt(64)] * 2, 2)

    def generate(self, prompts: list[list[int]], tokens: int) -> None:
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)


def environment(cpus: list[int]) -> dict[str, str]:
    """Give vLLM all of these cores; it would keep one for itself."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


if __name__ == "__main__":
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    serve(Vllm)
