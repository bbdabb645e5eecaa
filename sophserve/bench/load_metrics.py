"""What became of each request, and the numbers that follow: latencies, percentiles, throughput, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from sophserve.errors import ConfigError

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E latency"}
"""Time to the first token, mean time of a further token, time between two tokens, time to the end."""
BETWEEN_CHUNKS = "between chunks"
"""What ITL is called where chunks of answers held more than one token."""
OBJECTIVES = ("ttft", "tpot", "e2el")


@dataclass(eq=False)
class Outcome:
    """A request and its answer. Times are seconds of one clock; `times` are those at which chunks with text came, none
    where the answer came whole; `silent`, those of chunks without, which stand for tokens that have no text; `ended`,
    that of the last chunk that says anything. error: a kind of failure, such as "HTTP 429", or nothing; message: one
    such failure in full. Token counts are the server's, None where it gave none; accepted, rejected: of the tokens that
    it guessed, those that came true and those that did not."""

    sent: float
    times: list[float] = field(default_factory=list)
    silent: list[float] = field(default_factory=list)
    ended: float | None = None
    finished: float = 0.0
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    accepted_tokens: int | None = None
    rejected_tokens: int | None = None
    error: str = ""
    message: str = ""

    @property
    def tokens(self) -> int:
        """Of the answer. A server that reports no usage is taken to send one in each chunk."""
        return len(self.times) if self.output_tokens is None else self.output_tokens

    @property
    def chunks(self) -> list[float]:
        """When chunks with tokens came. A chunk without text is one as long as there are not more of them than tokens,
        and so is the last one, of the end token, where one token is missing still or time has passed."""
        found, tokens = self.times, self.tokens
        if self.silent and len(found) + len(self.silent) <= tokens:
            found = sorted(found + self.silent)
        if not found or self.ended is None or len(found) >= tokens:
            return found
        return [*found, self.ended] if len(found) + 1 == tokens or self.ended > found[-1] else found

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        chunks = self.chunks
        return chunks[0] - self.sent if chunks else None

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first one; None where the answer came all at once."""
        chunks = self.chunks
        if self.tokens < 2 or not chunks or chunks[-1] == chunks[0]:
            return None
        return (chunks[-1] - chunks[0]) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between the chunks of the answer. Those that were read together share the time before them."""
        reads = [(time, len(list(together))) for time, together in groupby(self.chunks)]
        if len(reads) < 2:
            return []
        gaps = [0.0] * (reads[0][1] - 1)
        for (before, _), (time, count) in pairwise(reads):
            gaps += [(time - before) / count] * count
        return gaps

    @property
    def e2el(self) -> float:
        """Seconds to the end of the answer."""
        return self.finished - self.sent

    def values(self, metric: str) -> list[float]:
        """Its part in one of METRICS, in milliseconds."""
        found = self.gaps if metric == "itl" else [getattr(self, metric)]
        return [1000 * value for value in found if value is not None]


@dataclass(frozen=True)
class Summary:
    """Many values in five numbers."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of at least one value."""
        ordered = sorted(values)
        p50, p90, p99 = (percentile(ordered, at) for at in (50, 90, 99))
        return cls(sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


@dataclass(frozen=True)
class Report:
    """A whole run. Tokens and chunks are those of completed requests; metrics in milliseconds, those that were seen;
    errors by kind, with the first message of each; good: completed requests within the SLO."""

    duration: float
    completed: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    accepted_tokens: int
    rejected_tokens: int
    chunks: int
    prompts_reported: bool
    usage_reported: bool
    errors: dict[str, int]
    messages: dict[str, str]
    metrics: dict[str, Summary]
    slo: dict[str, float]
    good: int

    def rate(self, count: int) -> float:
        """That many in the run's time, a second."""
        return count / self.duration if self.duration > 0 else 0.0

    def label(self, metric: str) -> str:
        """What to call one of METRICS."""
        return BETWEEN_CHUNKS if metric == "itl" and self.chunks != self.output_tokens else METRICS[metric]


def percentile(ordered: Sequence[float], at: float) -> float:
    """Of sorted values, linear between the two nearest."""
    place = (len(ordered) - 1) * at / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def parse_slo(words: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:50"]` as milliseconds by metric. Raises ConfigError."""
    slo = {}
    for word in words:
        name, _, limit = word.partition(":")
        try:
            milliseconds = float(limit)
        except ValueError:
            milliseconds = math.nan
        if name not in OBJECTIVES or not milliseconds > 0:
            raise ConfigError(f"cannot read --slo {word}: give {', '.join(OBJECTIVES)} as NAME:MILLISECONDS")
        slo[name] = milliseconds
    return slo


def summarize(outcomes: Sequence[Outcome], slo: dict[str, float]) -> Report:
    """The report of a run that is over. Its time is from the first request's start to the last one's end."""
    done = [outcome for outcome in outcomes if not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    seen = {name: [value for outcome in done for value in outcome.values(name)] for name in METRICS}
    # What an answer lacks, such as a second token, is no miss.
    good = [outcome for outcome in done if all(value <= slo[name] for name in slo for value in outcome.values(name))]
    duration = max(each.finished for each in outcomes) - min(each.sent for each in outcomes) if outcomes else 0.0
    return Report(
        duration=duration,
        completed=len(done),
        failed=len(failed),
        prompt_tokens=sum(outcome.prompt_tokens or 0 for outcome in done),
        cached_tokens=sum(outcome.cached_tokens or 0 for outcome in done),
        output_tokens=sum(outcome.tokens for outcome in done),
        accepted_tokens=sum(outcome.accepted_tokens or 0 for outcome in done),
        rejected_tokens=sum(outcome.rejected_tokens or 0 for outcome in done),
        chunks=sum(len(outcome.chunks) for outcome in done),
        prompts_reported=any(outcome.prompt_tokens is not None for outcome in done),
        usage_reported=all(outcome.output_tokens is not None for outcome in done),
        errors=dict(Counter(outcome.error for outcome in failed).most_common()),
        messages={outcome.error: outcome.message for outcome in reversed(failed)},
        metrics={name: Summary.of(values) for name, values in seen.items() if values},
        slo=slo,
        good=len(good),
    )
