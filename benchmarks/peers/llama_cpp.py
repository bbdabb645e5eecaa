"""llama.cpp through its own benchmarks: llama-bench for prompts, llama-batched-bench for steps of many sequences.

Run as `llama_cpp.py GGUF THREADS`, with the programs in the folder that LLAMA_CPP_BIN names. Every workload is a run
of its own, which loads the model anew and does not count that. A batch shares its prompt while that is computed, then
every sequence gets a copy of the keys and values.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.peers.protocol import DECODE_STEPS, serve


class LlamaCpp:
    """A GGUF file. Ready means that one token of it has been computed."""

    def __init__(self, model: str, threads: int) -> None:
        self._folder = Path(os.environ["LLAMA_CPP_BIN"])
        self._options = ["-m", model, "-t", str(threads)]
        self._bench(1, 1)

    def _run(self, program: str, *options: str) -> str:
        """What it prints. Raises RuntimeError with the last line of what it complains of."""
        command = [str(self._folder / program), *self._options, *options]
        done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
            raise RuntimeError(f"{program} ended with status {done.returncode} and said: {complaints[-1]}")
        return done.stdout

    def _bench(self, context: int, repetitions: int) -> float:
        warm = ["--no-warmup"] if context in (1, 8192) else []
        options = ["-p", str(context), "-n", "0", "-r", str(repetitions), "-o", "json", *warm]
        samples = json.loads(self._run("llama-bench", *options))[0]["samples_ns"]
        return sorted(samples)[len(samples) // 2] / 1e9

    def prefill(self, context: int) -> float:
        return self._bench(context, 3 if context < 4096 else 1)

    def decode(self, batch: int, context: int) -> float:
        """llama-batched-bench prints through a thread and does not wait for it at its end: at times it says nothing."""
        size = batch * (context + DECODE_STEPS + 64)
        options = ["-c", str(size), "-npp", str(context), "-ntg", str(DECODE_STEPS), "-npl", str(batch)]
        for _ in range(5):
            output = self._run("llama-batched-bench", *options, "-pps", "-no-kvu", "--output-format", "jsonl")
            if rows := [json.loads(line) for line in output.splitlines() if line.startswith("{")]:
                return float(rows[-1]["t_tg"]) / DECODE_STEPS
        raise RuntimeError("llama-batched-bench printed no row in five runs")


if __name__ == "__main__":
    serve(LlamaCpp)
