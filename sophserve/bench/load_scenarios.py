"""Scenarios: a few prompts that put a server through one situation, and a verdict of how it did."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sophserve.bench.load_client import LoadError
from sophserve.bench.load_metrics import Outcome
from sophserve.bench.load_prompts import read_text

Verdict = tuple[bool, str]


@dataclass(frozen=True)
class Scenario:
    """prompts: made anew for each run; together: sent all at once, else each after the answer to the one before.
    ignore_eos: where an answer that ends early says nothing."""

    prompts: Callable[[], list[str]]
    together: bool
    output_length: int
    ignore_eos: bool
    judge: Callable[[Sequence[Outcome]], Verdict]


def _texts(name: str) -> list[str]:
    return [text.strip() for text in read_text(name).split("\n---\n")]


def _unseen(text: str) -> str:
    """The text with a beginning that no cache holds."""
    return f"Document {secrets.token_hex(4)}\n\n{text}"


def _questions_on_one_article() -> list[str]:
    article, *questions = _texts("prefix-caching.txt")
    article = _unseen(article)
    return [f"{article}\n\n{question}" for question in questions]


def judge_users(outcomes: Sequence[Outcome]) -> Verdict:
    """Whether all were being answered at the same time."""
    chunks = [outcome.chunks for outcome in outcomes]
    changes = [(times[0], 1) for times in chunks] + [(times[-1], -1) for times in chunks]
    most = now = 0
    # Of equal times beginnings come first: an answer of one part counts.
    for _, change in sorted(changes, key=lambda entry: (entry[0], -entry[1])):
        now += change
        most = max(most, now)
    if most == len(outcomes):
        return True, f"all {most} users were being answered at the same time"
    return False, f"at most {most} of {len(outcomes)} users were being answered at the same time: raise --max-num-seqs"


def judge_caching(outcomes: Sequence[Outcome]) -> Verdict:
    """Whether all but the first prompt were found in the cache for the most part."""
    if any(outcome.cached_tokens is None or not outcome.prompt_tokens for outcome in outcomes[1:]):
        return False, "the server reports no cached tokens (vLLM does with --enable-prompt-tokens-details)"
    prompts = sum(outcome.prompt_tokens or 0 for outcome in outcomes[1:])
    rate = sum(outcome.cached_tokens or 0 for outcome in outcomes[1:]) / prompts
    first, *later = [outcome.ttft or 0.0 for outcome in outcomes]
    times = f"first token after {1000 * median(later):.0f} ms, {1000 * first:.0f} ms for the first question"
    if all(2 * (outcome.cached_tokens or 0) > (outcome.prompt_tokens or 0) for outcome in outcomes[1:]):
        return True, f"later questions found {rate:.1%} of their prompts in the cache: {times}"
    return False, f"later questions found only {rate:.1%} of their prompts in the cache: use --enable-prefix-caching"


def judge_chunking(outcomes: Sequence[Outcome]) -> Verdict:
    """Whether the first answer went on while the other prompts were computed, in pieces of at most half a prompt."""
    first, *others = sorted(outcomes, key=lambda outcome: outcome.chunks[0])
    gaps = [gap for outcome in outcomes for gap in outcome.gaps] or [0.0]
    longest = f"longest gap between tokens {1000 * max(gaps):.0f} ms, median {1000 * median(gaps):.0f} ms"
    if any(outcome.prompt_tokens is None for outcome in others):
        return False, f"the server reports no prompt tokens; {longest}"
    sizes = [(outcome.prompt_tokens or 0) - (outcome.cached_tokens or 0) for outcome in others]
    went_on = sum(when <= others[-1].chunks[0] for when in first.chunks[1:])
    count = f"the first answer got {went_on} more tokens while {sum(sizes)} prompt tokens of the others were computed"
    if 2 * sum(sizes) <= went_on * max(sizes):
        return True, f"{count}; {longest}"
    return False, f"{count}: start the server with --max-num-batched-tokens 100; {longest}"


SCENARIOS = {
    "four-users": Scenario(lambda: _texts("four-users.txt"), True, 96, True, judge_users),
    "prefix-caching": Scenario(_questions_on_one_article, False, 48, False, judge_caching),
    "prefill-chunking": Scenario(
        lambda: [_unseen(text) for text in _texts("prefill-chunking.txt")], True, 128, True, judge_chunking
    ),
}


def render_answers(prompts: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """A row for each request, with the last paragraph of its prompt, the question."""
    lines = [f"  {'prompt':>7}{'cached':>14}{'output':>8}{'TTFT, ms':>10}{'longest gap':>13}{'end, ms':>9}  question"]
    for number, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=False), 1):
        size, cached = outcome.prompt_tokens, outcome.cached_tokens
        share = f"{cached} ({cached / size:.0%})" if size and cached is not None else "-"
        numbers = (
            f"{'-' if size is None else size:>7}{share:>14}{outcome.tokens:>8}{1000 * (outcome.ttft or 0):>10.0f}"
            f"{1000 * max(outcome.gaps, default=0):>13.0f}{1000 * outcome.e2el:>9.0f}"
        )
        question = prompt.rpartition("\n\n")[2]
        lines.append(f"{number} {numbers}  {question[:47] + '...' if len(question) > 50 else question}")
    return "\n".join(lines)


def save_logs(name: str, prompts: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    """Write each prompt and answer to `run_NAME_1.log` and so on in the working directory; returns the files' names.
    Raises LoadError."""
    names = [f"run_{name}_{number}.log" for number in range(1, len(outcomes) + 1)]
    for file, prompt, outcome in zip(names, prompts, outcomes, strict=False):
        failure = f"\n\nfailed: {outcome.error}: {outcome.message}" if outcome.error else ""
        try:
            Path(file).write_text(f"{prompt}\n\n=== answer ===\n{outcome.text}{failure}\n", encoding="utf-8")
        except OSError as error:
            raise LoadError(f"cannot write {file}: {error.strerror}") from None
    return names
