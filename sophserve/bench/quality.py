"""Whether what a model wrote reads like text. Nothing here proves an answer right; each sign has caught broken ones."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_PERPLEXITY = 30.0
"""A model's own greedy text is likely to it, well below this."""
LEAST_DISTINCT = 0.3
"""Part of the runs of four tokens that should occur once only."""
MOST_BROKEN = 0.01
"""Part of the characters that may be broken."""
LEAST_AGREEMENT = 0.9
"""Part of the tokens that should be those of the golden file, before the first that differs."""
LEAST_SHARE = 0.05
"""A script that makes up less of a text is a name or a quotation."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass
class AnswerQuality:
    """Of one answer. repetition: part of its tokens that belong to a run of equal passages at its end. distinct: for
    n-grams of 1 to 4 tokens, the part that is not a repetition. agreement: part before the first token that is not the
    golden one's; None without a golden file."""

    perplexity: float | None
    repetition: float
    distinct: list[float]
    broken: float
    scripts: dict[str, float]
    foreign_scripts: list[str]
    agreement: float | None = None


@dataclass
class Verdict:
    """`good`, or `suspicious` with the reasons."""

    verdict: str
    reasons: list[str] = field(default_factory=list)
    answers: list[AnswerQuality] = field(default_factory=list)


def judge_answer(
    token_ids: Sequence[int],
    text: str,
    prompt: str,
    logprobs: Sequence[float] | None = None,
    golden: Sequence[int] | None = None,
) -> AnswerQuality:
    """Look at one answer; logprobs are those of its tokens."""
    # An answer that was cut may end in the middle of a character.
    whole = text.rstrip(REPLACEMENT)
    scripts = scripts_of(whole)
    allowed = {name for name, share in scripts_of(prompt).items() if share >= LEAST_SHARE}
    return AnswerQuality(
        perplexity=math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None,
        repetition=repetition(token_ids),
        distinct=[distinct(token_ids, size) for size in (1, 2, 3, 4)],
        broken=whole.count(REPLACEMENT) / max(1, len(whole)),
        scripts=scripts,
        foreign_scripts=sorted(
            name for name, share in scripts.items() if share >= LEAST_SHARE and allowed and name not in allowed
        ),
        agreement=None if golden is None else agreement(token_ids, golden),
    )


def judge(answers: Sequence[AnswerQuality]) -> Verdict:
    """The verdict on a batch; a reason says of how many answers it is true."""
    perplexities = [each.perplexity for each in answers if each.perplexity is not None]
    agreements = [each.agreement for each in answers if each.agreement is not None]
    unlikely = f"have a perplexity above {MOST_PERPLEXITY:g} under the model that wrote them"
    repeated = f"repeat more than {1 - LEAST_DISTINCT:.0%} of their runs of four tokens"
    counts = {
        unlikely: sum(not each <= MOST_PERPLEXITY for each in perplexities),
        "end in a loop that fills more than half of them": sum(each.repetition > 0.5 for each in answers),
        repeated: sum(each.distinct[3] < LEAST_DISTINCT for each in answers),
        "have broken characters": sum(each.broken > MOST_BROKEN for each in answers),
        "use a script that their prompt does not": sum(bool(each.foreign_scripts) for each in answers),
        "differ early from the golden file": sum(each < LEAST_AGREEMENT for each in agreements),
    }
    reasons = [f"{count} of {len(answers)} {what}" for what, count in counts.items() if count]
    return Verdict("suspicious" if reasons else "good", reasons, list(answers))


def distinct(items: Sequence[int], size: int) -> float:
    """The part of the n-grams that are not repetitions; 1 where there is none."""
    grams = [tuple(items[start : start + size]) for start in range(len(items) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(items: Sequence[int]) -> float:
    """The part of a sequence that is one passage over and over, up to its end, at least three times."""
    longest = 0
    for period in range(1, len(items) // 3 + 1):
        run = 0
        while run + period < len(items) and items[-1 - run] == items[-1 - run - period]:
            run += 1
        if run >= 2 * period:
            longest = max(longest, run + period)
    return longest / len(items) if items else 0.0


def agreement(items: Sequence[int], golden: Sequence[int]) -> float:
    """The part of the shorter one before the first difference."""
    count = min(len(items), len(golden))
    same = next((place for place in range(count) if items[place] != golden[place]), count)
    return same / count if count else 1.0


def scripts_of(text: str) -> dict[str, float]:
    """The scripts of a text's letters, by their part of them, the largest first; Kana counts as CJK."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else name
