"""A long prompt arrives while eight streams decode: the gaps between their tokens, with and without chunked prefill.

`chunked_prefill.py CHECKPOINT [PLOT.png]` starts the server twice and prints one table. The limit of a gap is the time
of one step with a full budget of tokens at the end of the long prompt, where attention sees most: what the last chunk
adds to the time to the first token of such a prompt alone, plus a step of the streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp

STREAMS = 8
BUDGET = 512
LONG_PROMPT = 4000
CONTEXT = 8192


@dataclass
class Run:
    """Seconds. gaps: (when the token came, time since the one before it), the long prompt's arrival being 0."""

    budget_step: float = 0.0
    first_token: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)

    def largest(self, before: bool) -> float:
        return max(gap for when, gap in self.gaps if (when < 0) == before)


def prompt(length: int) -> list[int]:
    return [random.randrange(1000, 50_000) for _ in range(length)]


async def stream(session: aiohttp.ClientSession, length: int, max_tokens: int) -> list[float]:
    """The times at which the tokens came."""
    # With logprobs every token comes in a chunk of its own, also one that is only half a character.
    options = {"stream": True, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    body = {"prompt": prompt(length), "max_tokens": max_tokens, **options}
    times = []
    async with session.post("/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["finish_reason"] is None:
                times.append(time.monotonic())
    return times


async def first_token(session: aiohttp.ClientSession, length: int) -> float:
    start = time.monotonic()
    return (await stream(session, length, 2))[0] - start


async def measure(url: str) -> Run:
    run = Run()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(600)) as session:
        await stream(session, BUDGET, 1)
        run.budget_step = await first_token(session, LONG_PROMPT) - await first_token(session, LONG_PROMPT - BUDGET)
        streams = [asyncio.create_task(stream(session, 50, 150)) for _ in range(STREAMS)]
        await asyncio.sleep(4)
        arrival = time.monotonic()
        run.first_token = await first_token(session, LONG_PROMPT)
        for times in await asyncio.gather(*streams):
            run.gaps += [(later - arrival, later - earlier) for earlier, later in pairwise(times)]
    # The streams' own start, when their prompts are prefilled, is not the question.
    run.gaps = sorted(gap for gap in run.gaps if gap[0] > -2.5)
    return run


def serve_and_measure(checkpoint: str, *options: str) -> Run:
    command = [sys.executable, "-m", "sophserve", "--model", checkpoint, "--port", "0", "--max-model-len", str(CONTEXT)]
    command += ["--speculation", "off"]
    server = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if match := re.search(r"ready: (http://\S+)/v1", line):
                return asyncio.run(measure(match.group(1)))
        raise SystemExit("the server ended before it was ready")
    finally:
        server.terminate()
        server.wait()


def plot(runs: dict[str, Run], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for name, run in runs.items():
        axes.plot(*zip(*run.gaps, strict=True), ".", markersize=4, label=name)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel(f"seconds after a prompt of {LONG_PROMPT} tokens arrived")
    axes.set_ylabel("seconds between two tokens of a stream")
    axes.set_title(f"{STREAMS} streams while a long prompt is prefilled")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("plot", nargs="?")
    options = parser.parse_args()
    runs = {
        f"chunks of {BUDGET}": serve_and_measure(options.checkpoint, "--max-num-batched-tokens", str(BUDGET)),
        "whole prompt": serve_and_measure(
            options.checkpoint, "--max-num-batched-tokens", str(CONTEXT), "--no-enable-chunked-prefill"
        ),
    }
    print("| | largest gap before, s | largest gap after, s | limit, s | ratio | long prompt's first token, s |")
    print("|---|---|---|---|---|---|")
    for name, run in runs.items():
        before, after = run.largest(before=True), run.largest(before=False)
        limit = run.budget_step + before
        print(f"| {name} | {before:.3f} | {after:.3f} | {limit:.3f} | {after / limit:.2f} | {run.first_token:.2f} |")
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
