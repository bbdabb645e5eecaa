"""What guesses gain, and cost where there are none: `speculation.py DIRECTORY...`, or demo.

Each model answers with and without guesses in turn, in one process, the same tokens each time:

- copies: the answer is known and given as `prediction`, as of a text that is repeated; with mistakes, as of one that is
  edited: every twentieth token of the prediction is another.
- stories: answers at temperature 0.8 with nothing given, each by itself (a salt of its own), as most of them are.

With `--speculation mtp` it is the model's own layer that guesses (of `make_checkpoint.py deepseek-mini DIR --mtp 0.1`),
with `--speculative-model` a smaller one (of `make_checkpoint.py qwen2-mini DIR --draft 0.1`).

The first table has the ratio of the speeds, the medians of turns; the second the time of a step by its rows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from sophserve import AsyncLLM, SamplingParams

TEXT = "Once upon a time there was a girl who lived in a small house near the sea. Every day she went to the beach. "
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Answers:
    """What a batch said, and how long it took from the first tokens on."""

    def __init__(self, batch: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.first = [0.0] * batch
        self.seconds = 0.0


async def run(llm: AsyncLLM, prompts: list[list[int]], params: list[SamplingParams]) -> Answers:
    """Answer the prompts at once."""
    found = Answers(len(prompts))

    async def answer(place: int) -> None:
        request = llm.engine.generate(prompts[place], params[place], "bench", cache_salt=uuid4().hex)
        async for delta in request:
            found.first[place] = found.first[place] or time.perf_counter()
            found.tokens[place] += delta.token_ids

    await asyncio.gather(*map(answer, range(len(prompts))))
    found.seconds = time.perf_counter() - max(found.first)
    return found


def params(kind: str, place: int, tokens: int, guessing: bool, known: list[int]) -> SamplingParams:
    temperature = 0.8 if kind == "stories" else 0.0
    drafts = None if guessing else 0
    return SamplingParams(
        temperature=temperature,
        seed=place,
        max_tokens=tokens,
        ignore_eos=True,
        speculative_tokens=drafts,
        prediction=known if guessing else [],
    )


async def compare(llm: AsyncLLM, kind: str, batch: int, tokens: int, turns: int) -> tuple[float, float, float]:
    """Tokens/s without guesses, how many times that with them, and the part of the guesses that came true."""
    ids = llm.tokenizer.encode(TEXT * 3, False)
    prompts = [ids[place % len(ids) :][:64] for place in range(batch)]
    known = (await run(llm, prompts, [params(kind, place, tokens, False, []) for place in range(batch)])).tokens
    told: list[list[int]] = [[] for _ in known]
    if kind != "stories":
        told = [each.copy() for each in known]
    if kind == "edits":
        for each in told:
            each[10::20] = [(token + 1) % 200 for token in each[10::20]]
    plain, ratios, counts = [], [], llm.engine.metrics.counts
    drafted, accepted = counts.draft_tokens, counts.accepted_tokens
    for turn in range(turns):
        seconds = {}
        for guessing in (bool(turn % 2), not turn % 2):  # each is the first one as often
            each = [params(kind, place, tokens, guessing, told[place]) for place in range(batch)]
            answers = await run(llm, prompts, each)
            assert answers.tokens == known
            seconds[guessing] = answers.seconds
        plain.append(batch * (tokens - 1) / seconds[False])
        ratios.append(seconds[False] / seconds[True])
    drafted, accepted = counts.draft_tokens - drafted, counts.accepted_tokens - accepted
    return statistics.median(plain), statistics.median(ratios), accepted / max(1, drafted)


async def step(llm: AsyncLLM, rows: int) -> float:
    """Milliseconds of a step of so many sequences, the fastest of some."""
    times = []
    for _ in range(3):
        prompts = [[300 + place] * 8 for place in range(rows)]
        answers = await run(llm, prompts, [params("copies", 0, 24, False, [])] * rows)
        times.append(1e3 * answers.seconds / 23)
    return min(times)


async def measure(
    model: str, batches: list[int], kinds: list[str], tokens: int, turns: int, **guesses: str | None
) -> None:
    options = {"max_model_len": 1024, "kv_cache_memory": "1GiB", "max_num_seqs": 64, **guesses}
    async with AsyncLLM(model, **options) as llm:
        for kind in kinds:
            for batch in batches:
                rate, ratio, held = await compare(llm, kind, batch, tokens, turns)
                print(f"| {Path(model).name} | {kind} | {batch} | {rate:.0f} | {ratio:.2f} | {held:.0%} |", flush=True)
        times = [f"{await step(llm, rows):.2f}" for rows in ROWS]
    print(f"\n{Path(model).name}, ms of a step of {', '.join(map(str, ROWS))} rows: {', '.join(times)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--batches", type=lambda text: [*map(int, text.split(","))], default=[1, 4, 16, 64])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["copies", "edits", "stories"])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--speculation", default="auto")
    parser.add_argument("--speculative-model")
    given = parser.parse_args()
    print(f"{cpu_model()}, commit {commit()}\n")
    titles = ["model", "answers", "batch", "tokens/s without", "with guesses, times", "guesses that held"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for model in given.models:
        guesses = {"speculation": given.speculation, "speculative_model": given.speculative_model}
        asyncio.run(measure(model, given.batches, given.kinds, given.tokens, given.turns, **guesses))


if __name__ == "__main__":
    main()
