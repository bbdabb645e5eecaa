"""Results of `sophserve bench` as text, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from sophserve.bench.offline_result import Result, Work
from sophserve.errors import ConfigError
from sophserve.measure.limits import DeviceLimits
from sophserve.table import rows_of, size

SCHEMA = 1
"""Of --save-json; grows when the meaning of a field changes. docs/bench.md describes it."""

COLUMNS = [
    "time", "model", "dtype", "quantization", "device", "tp_size", "mode", "batch", "input_length", "max_new_tokens",
    "ftl_ms", "tps", "prefill_tps", "step_p50_ms", "step_p90_ms", "step_p99_ms", "peak_memory", "quality",
]  # fmt: skip
"""Of the file of --save-results."""


def check_columns(csv_file: str) -> None:
    """Raise ConfigError if a file of results has other columns."""
    if Path(csv_file).is_file():
        with Path(csv_file).open(encoding="utf-8", newline="") as file:
            found = next(csv.reader(file), COLUMNS)
        if found != COLUMNS:
            raise ConfigError(f"{csv_file} has other columns than --save-results writes; give another file")


def text(result: Result, limits: DeviceLimits | None) -> list[str]:
    """One result for people."""
    passes = [("warm-up", result.warmup), ("measured", result.measured)]
    rows = [[name, f"{speed.ftl_ms:.1f} ms", _rate(speed.tps)] for name, speed in passes]
    lines = [str(result.setting), "", *rows_of(["", "FTL", "TPS"], rows), ""]
    lines.append(f"prefill      {_rate(result.prefill_tps)}, {_work(result.prefill, limits)}")
    if result.decode and result.steps_ms:
        steps = result.steps_ms
        lines.append(f"decode       {_work(result.decode, limits)}")
        lines.append(f"steps        p50 {steps.p50:.2f} ms, p90 {steps.p90:.2f} ms, p99 {steps.p99:.2f} ms")
    else:
        lines.append("decode       nothing to measure: no step had all rows; raise --max-new-tokens")
    if images := result.images:
        lines.append(f"images       {images.tokens} tokens each, encoded in {images.encode_ms:.1f} ms")
        again, text = f"{images.again_ftl_ms:.1f} ms", f"{images.text_ftl_ms:.1f} ms"
        lines.append(f"             FTL {again} with the same ones again, {text} of as much text")
    if result.guessed:
        lines.append(f"guessed      {result.guessed:.0%} of the tokens")
    lines.append(f"peak memory  {size(result.peak_memory)}")
    if verdict := result.quality:
        lines.append(f"quality      {verdict.verdict}" + "".join(f"\n  {reason}" for reason in verdict.reasons))
    return lines


def table(results: Sequence[Result]) -> list[str]:
    """Many results for people."""
    titles = ["batch", "input", "new", "FTL, ms", "TPS", "prefill/s", "p50, ms", "p99, ms", "GB/s", "GFLOP/s"]
    with_images = any(result.images for result in results)
    if with_images:
        titles += ["image, ms", "again, ms"]
    rows = []
    for result in results:
        setting, steps, decode = result.setting, result.steps_ms, result.decode
        numbers = [result.measured.ftl_ms, result.measured.tps, result.prefill_tps]
        numbers += [steps.p50, steps.p99] if steps else [None, None]
        numbers += [decode.gbs, decode.gflops] if decode else [None, None]
        if with_images:
            numbers += [result.images.encode_ms, result.images.again_ftl_ms] if result.images else [None, None]
        sizes = [setting.batch, setting.input_length, setting.max_new_tokens]
        rows.append([*map(str, sizes), *("-" if number is None else f"{number:.1f}" for number in numbers)])
    return rows_of(titles, rows)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} tokens/s"


def _work(work: Work, limits: DeviceLimits | None) -> str:
    if limits is None or work.bandwidth_share is None or work.rate_share is None:
        return f"{work.gbs:.2f} GB/s, {work.gflops:.1f} GFLOP/s"
    return (
        f"{work.gbs:.2f} GB/s ({work.bandwidth_share:.0%} of what the device reads), "
        f"{work.gflops:.1f} GFLOP/s ({work.rate_share:.0%} of what it does)"
    )


def save_csv(path: str, meta: dict[str, Any], results: Sequence[Result]) -> None:
    """Append a row for each result, after a header if the file is new."""
    new = not Path(path).is_file() or not Path(path).stat().st_size
    with Path(path).open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        for result in results:
            steps = result.steps_ms
            writer.writerow(
                meta["run"]
                | msgspec.to_builtins(result.setting)
                | result.performance()
                | {f"step_{name}_ms": getattr(steps, name) if steps else None for name in ("p50", "p90", "p99")}
                | {"time": meta["time"], "quality": result.quality.verdict if result.quality else None}
            )


def save_json(path: str, meta: dict[str, Any], limits: DeviceLimits | None, results: Sequence[Result]) -> None:
    """Everything, one benchmark a result."""
    whole = {
        "schema": SCHEMA,
        "meta": meta,
        "limits": msgspec.to_builtins(limits),
        "benchmarks": [
            {
                "benchmark": msgspec.to_builtins(result.setting),
                "performance": result.performance(),
                "quality": asdict(result.quality) if result.quality else None,
                "data": {
                    "prompt_tokens": result.prompt_tokens,
                    "steps_s": result.run.steps,
                    "answers": [msgspec.to_builtins(answer) for answer in result.run.answers],
                },
            }
            for result in results
        ],
    }
    Path(path).write_text(json.dumps(whole, ensure_ascii=False, indent=1), encoding="utf-8")


def read_golden(path: str, batch: int) -> list[list[int]]:
    """The answers that --save-json kept of an equal batch. Raises ConfigError."""
    try:
        benchmarks = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
        golden = [answer["token_ids"] for answer in benchmarks[0]["data"]["answers"]]
    except OSError as error:
        raise ConfigError(f"cannot read --golden {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"--golden {path} is no file that --save-json wrote") from None
    if len(golden) != batch:
        raise ConfigError(f"--golden {path} has {len(golden)} answers, but --batch is {batch}")
    return golden


def machine() -> dict[str, Any]:
    """What this was measured on and with."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    versions = {name: importlib.metadata.version(name) for name in ("sophserve", "torch", "tokenizers")}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": names[0] if names else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory": memory[0] if memory else None,
        },
        "versions": {"python": platform.python_version(), **versions},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def save_plot(path: str, results: Sequence[Result]) -> bool:
    """Draw tokens a second over the batch, a line for each length of prompts; False where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        print("no picture is drawn: pip install 'sophserve[plot]'", file=sys.stderr)
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="tight")
    left, right = figure.subplots(1, 2)
    lines: dict[tuple[int, int], list[Result]] = {}
    for result in results:
        lines.setdefault((result.setting.input_length, result.setting.max_new_tokens), []).append(result)
    for (length, new), points in lines.items():
        batches, label = [point.setting.batch for point in points], f"{length} + {new} tokens"
        left.plot(batches, [point.measured.tps or float("nan") for point in points], "o-", label=label)
        right.plot(batches, [point.measured.ftl_ms for point in points], "o-", label=label)
    left.set(xlabel="batch", ylabel="TPS, tokens/s", ylim=(0, None))
    right.set(xlabel="batch", ylabel="FTL, ms", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=120)
    return True
