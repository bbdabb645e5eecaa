"""Runs batches through the engine and times their steps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from sophserve.engine.output import OutputDelta
from sophserve.image_prompt import ImagePrompt
from sophserve.link.messages import TokenLogprob
from sophserve.llm import AsyncLLM
from sophserve.sampling import SamplingParams


@dataclass
class Answer:
    """One row of a batch: its tokens, when each came, in seconds since the batch was given, and how many were
    guessed."""

    token_ids: list[int]
    times: list[float]
    text: str
    finish_reason: str | None = None
    guessed: int = 0


@dataclass
class Pass:
    """One batch. first_token: seconds until every row had its first token. steps: the times of the steps from then
    until the first row ended, in which every row gained a token."""

    answers: list[Answer]
    first_token: float
    steps: list[float]

    @property
    def step(self) -> float | None:
        """The mean step; None where there was none, with one new token."""
        return sum(self.steps) / len(self.steps) if self.steps else None


async def run_pass(llm: AsyncLLM, prompts: Sequence[ImagePrompt], new_tokens: int, salt: str = "") -> Pass:
    """Generate so many tokens for each prompt, all at once. salt: only passes with one share blocks, and guesses."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    start = perf_counter()
    answers = await asyncio.gather(*(_answer(llm, prompt, params, start, salt) for prompt in prompts))
    return Pass(answers, *phases([answer.times for answer in answers]))


def phases(times: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """Pass's first_token and steps, from the times of each row's tokens."""
    last = max(times, key=lambda row: row[0])
    end = min(row[-1] for row in times)
    # The tokens of one step come a moment apart: most of a step lies before the end, or most of it after.
    return last[0], [after - before for before, after in pairwise(last) if (before + after) / 2 < end]


async def _answer(llm: AsyncLLM, prompt: ImagePrompt, params: SamplingParams, start: float, salt: str) -> Answer:
    answer, (ids, items) = Answer([], [], ""), prompt
    llm.engine.check(ids, params, items)
    async with aclosing(llm.engine.generate(ids, params, "bench", cache_salt=salt, items=items)) as deltas:
        async for delta in deltas:
            _take(answer, delta, perf_counter() - start)
    return answer


def _take(answer: Answer, delta: OutputDelta, now: float) -> None:
    before, count = answer.times[-1] if answer.times else now, len(delta.token_ids)
    # Deltas that came while the loop was busy are one: their tokens are spread over the time between.
    answer.times += [before + (now - before) * (place + 1) / count for place in range(count)]
    answer.token_ids += delta.token_ids
    answer.text += delta.text
    answer.guessed += delta.accepted_tokens
    answer.finish_reason = delta.finish_reason


async def logprobs_of(llm: AsyncLLM, prompt: ImagePrompt, token_ids: list[int]) -> list[float]:
    """The log-probability of each token of an answer under the model, in one prefill."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    entries: Sequence[list[TokenLogprob] | None] = []
    ids, items = prompt
    llm.engine.check(ids + token_ids, params, items)
    async with aclosing(llm.engine.generate(ids + token_ids, params, "bench", items=items)) as deltas:
        async for delta in deltas:
            entries = delta.prompt_logprobs or entries
    return [entry[0].logprob for entry in entries[len(ids) :] if entry]


def peak_worker_memory() -> int:
    """Bytes: the largest that this process's workers have been, added up."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        if int(status["PPid"]) == os.getpid() and b"sophserve.worker.process" in command:
            total += int(status.get("VmHWM", "0 kB").split()[0]) * 1024
    return total
