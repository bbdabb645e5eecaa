"""What a decode step costs outside the kernels, with and without capture: `decode_overhead.py DIRECTORY`.

DIRECTORY is the `deep` checkpoint of make_checkpoint.py: as many operators as Qwen2-0.5B, hardly any arithmetic. Its
whole step, from scheduling to the sampled token, is taken for the time outside the kernels. Captured and eager run in
turn; the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from sophserve import LLM, SamplingParams

BATCHES = [1, 8, 16, 64]
TOKENS, TURNS = 200, 5


def step(llm: LLM, batch: int) -> float:
    """Milliseconds of a decode step of `batch` sequences."""
    prompts = [[300 + index] * 8 for index in range(batch)]
    times = []
    for tokens in (8, 8 + TOKENS):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / TOKENS * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model = parser.parse_args().model
    times: dict[tuple[bool, int], list[float]] = {}
    with (
        LLM(model, kv_cache_memory="256MiB", speculation="off") as captured,
        LLM(model, kv_cache_memory="256MiB", speculation="off", enforce_eager=True) as eager,
    ):
        for _ in range(TURNS):
            for batch in BATCHES:
                times.setdefault((False, batch), []).append(step(eager, batch))
                times.setdefault((True, batch), []).append(step(captured, batch))
    print(f"{cpu_model()}, commit {commit()}\n\n| batch | eager, ms | captured, ms |\n|---|---|---|")
    for batch in BATCHES:
        before, after = (statistics.median(times[kind, batch]) for kind in (False, True))
        print(f"| {batch} | {before:.2f} | {after:.2f} |")


if __name__ == "__main__":
    main()
