"""What `sophserve load` reports, from given times."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from typing import Any

import pytest

from sophserve.bench import load_scenarios
from sophserve.bench.load_metrics import Outcome, Summary, parse_slo, summarize
from sophserve.bench.load_report import render
from sophserve.bench.load_run import arrivals


def outcome(*times: float, tokens: int | None = None, **more: Any) -> Outcome:
    """Sent at 0, and over when its last part came."""
    return Outcome(0.0, list(times), finished=times[-1] if times else 1.0, output_tokens=tokens, **more)


def test_summary_interpolates_between_values() -> None:
    assert Summary.of([4.0]) == Summary(4, 4, 4, 4, 4)
    summary = Summary.of([40.0, 10.0, 30.0, 20.0, 50.0])
    assert (summary.mean, summary.p50, summary.max) == (30, 30, 50)
    assert (summary.p90, summary.p99) == (pytest.approx(46), pytest.approx(49.6))


def test_latencies_of_one_answer() -> None:
    # Two tokens came in one of the four parts.
    answer = outcome(0.5, 0.75, 1.0, 1.5, tokens=5)
    assert (answer.ttft, answer.tpot, answer.e2el, answer.gaps) == (0.5, 0.25, 1.5, [0.25, 0.25, 0.5])
    assert outcome(0.5, 0.75, 1.0).tpot == 0.25  # no usage: parts are counted
    assert outcome(0.5, tokens=1).tpot is outcome().ttft is None
    assert outcome(0.5, tokens=1).values("tpot") == outcome(0.5, tokens=1).values("itl") == []


def test_report_counts_only_what_was_answered() -> None:
    outcomes = [
        outcome(0.25, 0.5, tokens=2, prompt_tokens=10, cached_tokens=8),
        outcome(0.75, 1.75, tokens=3, prompt_tokens=20, accepted_tokens=1, rejected_tokens=3),
        outcome(error="HTTP 429", message="first"),
        outcome(error="HTTP 429", message="second"),
        outcome(0.5, tokens=7, error="timeout", message="late"),
    ]
    outcomes[1].sent, outcomes[1].finished = 0.25, 2.0
    report = summarize(outcomes, parse_slo(["ttft:500", "tpot:400"]))
    assert (report.duration, report.completed, report.failed) == (2.0, 2, 3)
    assert (report.prompt_tokens, report.cached_tokens, report.output_tokens) == (30, 8, 5)
    assert "guesses        4, 25.0% came true: 20.0% of the output tokens" in render(report).splitlines()
    assert "guesses" not in render(summarize(outcomes[:1], {}))
    assert report.errors == {"HTTP 429": 2, "timeout": 1} and report.messages["HTTP 429"] == "first"
    assert (report.rate(report.output_tokens), report.good) == (2.5, 1)  # the second took 500 ms a token
    assert (report.metrics["ttft"].p50, report.metrics["tpot"].max) == (375, 500)
    assert summarize(outcomes, parse_slo(["ttft:499", "e2el:1000"])).good == 1
    assert summarize(outcomes, parse_slo(["ttft:501"])).good == 2
    empty = summarize([], {})
    assert (empty.duration, empty.rate(empty.completed), empty.metrics) == (0, 0, {})


def test_arrivals_follow_rate_and_burstiness() -> None:
    def gaps(burstiness: float) -> list[float]:
        times = list(islice(arrivals(4.0, burstiness, random.Random(1)), 4001))
        assert times[0] == 0
        return [later - earlier for earlier, later in pairwise(times)]

    def spread(values: list[float]) -> float:
        mean = sum(values) / len(values)
        assert mean == pytest.approx(0.25, rel=0.1)
        return sum((value - mean) ** 2 for value in values) / len(values) / mean**2

    # Of a gamma distribution this is one over its shape.
    for burstiness in (0.5, 1.0, 100.0):
        assert spread(gaps(burstiness)) == pytest.approx(1 / burstiness, rel=0.15)
    assert list(islice(arrivals(None, 1.0, random.Random(1)), 3)) == [0, 0, 0]


def test_verdicts() -> None:
    apart = [outcome(1.0, 2.0), outcome(1.5, 3.0), outcome(2.5, 4.0), outcome(2.75, 5.0)]
    assert load_scenarios.judge_users(apart)[1].startswith("at most 3 of 4 users")
    assert load_scenarios.judge_users([outcome(1.0, 9.0), *apart[2:]])[0]
    assert load_scenarios.judge_users([outcome(1.0), outcome(1.0, 2.0)])[0]

    def asked(*cached: int | None) -> tuple[bool, str]:
        return load_scenarios.judge_caching([outcome(1.0, prompt_tokens=100, cached_tokens=each) for each in cached])

    assert asked(0, 96, 80) == (
        True,
        "later questions found 88.0% of their prompts in the cache: first token after 1000 ms, "
        "1000 ms for the first question",
    )
    assert asked(0, 96, 50) == (
        False,
        "later questions found only 73.0% of their prompts in the cache: use --enable-prefix-caching",
    )
    assert "reports no cached tokens" in asked(0, None, 80)[1]

    first = outcome(1.0, 1.5, 2.0, 2.5, 3.0, 9.0)
    others = [outcome(2.0, 2.25, prompt_tokens=300), outcome(3.0, 3.25, prompt_tokens=500, cached_tokens=100)]
    good, why = load_scenarios.judge_chunking([*others, first])
    assert good and why.startswith("the first answer got 4 more tokens while 700 prompt tokens of the others")
    assert why.endswith("longest gap between tokens 6000 ms, median 500 ms")
    good, why = load_scenarios.judge_chunking([outcome(1.0, 2.0, 2.5, 9.0), *others, outcome(3.0, prompt_tokens=400)])
    assert not good and "start the server with --max-num-batched-tokens 100" in why
    assert "reports no prompt tokens" in load_scenarios.judge_chunking([first, outcome(2.0)])[1]
