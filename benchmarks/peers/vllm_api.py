"""vLLM's CPU build through its embedded API, with its default options."""

from __future__ import annotations

import os
import time

from benchmarks.peers.protocol import DECODE_STEPS, Generator, prompt, serve


class Vllm(Generator):
    """The engine. It has no prefix cache for latent attention on CPUs, so that steps are timed one by one."""

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

    def decode(self, batch: int, context: int) -> float:
        """The time of a step once every sequence has four tokens; those that were first go on meanwhile."""
        engine, names = self._llm.llm_engine, [f"{time.monotonic_ns()}-{number}" for number in range(batch)]
        params = self._params(temperature=0, max_tokens=512, ignore_eos=True, detokenize=False)
        for name in names:
            engine.add_request(name, {"prompt_token_ids": prompt(context)}, params)
        counts, begin = dict.fromkeys(names, 0), (0, 0.0)
        while True:
            for output in engine.step():
                counts[output.request_id] = len(output.outputs[0].token_ids)
            least, now = min(counts.values()), time.perf_counter()
            if least >= 4 and not begin[0]:
                begin = least, now
            if least >= 4 + DECODE_STEPS:
                break
        engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()
        return (now - begin[1]) / (least - begin[0])


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
