"""A run's report: as a table for people, as JSON, and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sophserve.bench.load_metrics import METRICS, Outcome, Report, Summary
from sophserve.errors import ConfigError


def check_files(*paths: str | None) -> None:
    """Raise ConfigError if one could not be written."""
    for path in filter(None, paths):
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise ConfigError(f"cannot write {path}: there is no such directory")
        if Path(path).is_dir() or not os.access(path if Path(path).exists() else folder, os.W_OK):
            raise ConfigError(f"cannot write {path}: it is a directory, or not to be written to")


def render(report: Report) -> str:
    rate = _rate(report, report.completed)
    lines = [f"completed      {report.completed} in {report.duration:.2f} s, {rate} requests/s"]
    if report.failed:
        lines.append(f"failed         {report.failed}")
        lines += [f"  {count} x {kind}: {report.messages[kind]}" for kind, count in report.errors.items()]
    if report.prompts_reported or not report.completed:
        share = f"{report.cached_tokens / report.prompt_tokens:.1%}" if report.cached_tokens else ""
        cached = share and f", {share} from the prefix cache"
        lines.append(f"prompt tokens  {report.prompt_tokens}, {_rate(report, report.prompt_tokens)}/s{cached}")
    if report.usage_reported or report.chunks:
        lines.append(f"output tokens  {report.output_tokens}, {_rate(report, report.output_tokens)}/s")
    else:
        lines.append("tokens         not known: the server reports no usage and sends answers whole")
    if guessed := report.accepted_tokens + report.rejected_tokens:
        right, gained = report.accepted_tokens / guessed, report.accepted_tokens / max(1, report.output_tokens)
        lines.append(f"guesses        {guessed}, {right:.1%} came true: {gained:.1%} of the output tokens")
    if report.chunks and not report.usage_reported:
        lines.append("  the server reports no usage: parts of the answers are counted as tokens")
    if report.slo:
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in report.slo.items())
        lines.append(f"goodput        {_rate(report, report.good)} requests/s, {report.good} within {limits}")
    if report.metrics:
        lines += ["", *_table(report)]
    return "\n".join(lines)


def _rate(report: Report, count: int) -> str:
    rate = report.rate(count)
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.2f}"


def _table(report: Report) -> list[str]:
    columns = [field.name for field in fields(Summary)]
    lines = [f"{'':<18}" + "".join(f"{column:>10}" for column in columns)]
    for name, summary in report.metrics.items():
        numbers = "".join(f"{getattr(summary, column):10.1f}" for column in columns)
        lines.append(f"{report.label(name) + ', ms':<18}{numbers}")
    return lines


def save_json(path: str, settings: dict[str, Any], report: Report, outcomes: Sequence[Outcome], stopped: str) -> None:
    """Everything: the settings, the report, and each request with its times in seconds since the first one."""
    start = min((outcome.sent for outcome in outcomes), default=0.0)
    requests = [
        asdict(outcome)
        | {
            "sent": outcome.sent - start,
            "finished": outcome.finished - start,
            "times": [when - start for when in outcome.times],
            "silent": [when - start for when in outcome.silent],
            "ended": None if outcome.ended is None else outcome.ended - start,
        }
        for outcome in outcomes
    ]
    rates = {
        "request_throughput": report.rate(report.completed),
        "output_throughput": report.rate(report.output_tokens),
        "total_token_throughput": report.rate(report.prompt_tokens + report.output_tokens),
        "request_goodput": report.rate(report.good) if report.slo else None,
    }
    whole = {"settings": settings, "stopped": stopped, **asdict(report), **rates, "requests": requests}
    Path(path).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_png(path: str, title: str, report: Report, outcomes: Sequence[Outcome]) -> None:
    """Requests over time, and how the latencies are distributed."""
    from matplotlib.figure import Figure

    start = min((outcome.sent for outcome in outcomes), default=0.0)
    figure = Figure(figsize=(13, 5), layout="tight")
    over_time, shares = figure.subplots(1, 2)
    sent = [outcome.sent - start for outcome in outcomes]
    ends = [outcome.finished - start for outcome in outcomes]
    firsts = [
        end if each.ttft is None else each.sent - start + each.ttft for each, end in zip(outcomes, ends, strict=True)
    ]
    rows, colours = range(len(outcomes)), ["tab:red" if outcome.error else "tab:blue" for outcome in outcomes]
    over_time.barh(rows, [first - at for at, first in zip(sent, firsts, strict=True)], 1, sent, color="lightgrey")
    over_time.barh(rows, [end - first for first, end in zip(firsts, ends, strict=True)], 1, firsts, color=colours)
    over_time.set(xlabel="seconds", ylabel="request", title="waiting (grey), answered (blue), failed (red)")
    over_time.yaxis.get_major_locator().set_params(integer=True)
    done = [outcome for outcome in outcomes if not outcome.error]
    for name in METRICS:
        values = sorted(value for outcome in done for value in outcome.values(name))
        if values:
            shares.plot(
                values, [100 * (place + 1) / len(values) for place in range(len(values))], label=report.label(name)
            )
    shares.set(xscale="symlog", xlabel="milliseconds", ylabel="% at most so long", title="latencies")
    if shares.lines:
        shares.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
