"""The cmodel's operators beside torch's and the machine's limits: `kernels.py [--only linear,attention] [--json FILE]`.

Ours and torch's run in turn and every number is the median of the turns. Weights and caches rotate over as many copies
as exceed the CPU's caches, so that they come from memory as in a model. The limit of an operator is the longer of the
time to read its operands once (weights, or keys and values) and that of its operations at the peak of its dtype.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import kernel_cases as cases
from benchmarks.kernel_cases import DTYPES, SHAPES, Case
from benchmarks.machine import Limits, commit, cpu_model, measure_limits
from device.cmodel.device import CmodelDevice
from device.cpus import thread_count

ROWS = [1, 2, 4, 8, 16, 64, 128, 512, 1024]


@dataclass(frozen=True)
class Result:
    """Seconds; limit: what the machine allows."""

    operator: str
    size: str
    dtype: str
    ours: float
    torch: float | None
    limit: float
    bytes: float
    operations: float


def measure(case: Case, machine: Limits, seconds: float, turns: int) -> Result:
    """Interleave ours and torch's in `turns` turns of about `seconds` altogether."""
    calls = [case.ours] + ([case.torchs] if case.torchs else [])
    counts = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        counts.append(max(1, min(200, int(seconds / turns / len(calls) / once))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, count, each in zip(calls, counts, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            each.append((time.perf_counter() - start) / count)
    peak = machine.float32_gflops if case.dtype in ("float32", "float16") else machine.bfloat16_gflops
    limit = max(case.bytes / machine.read_gbs, case.operations / peak) / 1e9
    torchs = median(times[1]) if case.torchs else None
    return Result(case.operator, case.size, case.dtype, median(times[0]), torchs, limit, case.bytes, case.operations)


def render(results: list[Result]) -> str:
    """Markdown."""
    head = ["operator", "size", "dtype", "µs", "GB/s", "GFLOP/s", "of limit", "torch, µs", "torch / ours"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for each in results:
        rates = [f"{each.bytes / each.ours / 1e9:.1f}", f"{each.operations / each.ours / 1e9:.0f}"]
        cells = [
            each.operator,
            each.size,
            each.dtype,
            f"{each.ours * 1e6:.1f}",
            *rates,
            f"{each.limit / each.ours:.0%}",
        ]
        cells += ["", ""] if each.torch is None else [f"{each.torch * 1e6:.1f}", f"{each.torch / each.ours:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(operators: list[str]) -> argparse.Namespace:
    names = lambda text: [each for each in text.split(",") if each]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names, default=operators, help=f"of {', '.join(operators)}")
    parser.add_argument("--shapes", type=names, default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rows", type=lambda text: list(map(int, text.split(","))), default=ROWS)
    parser.add_argument("--dtypes", type=names, default=list(DTYPES), help=f"of linear: {', '.join(DTYPES)}")
    parser.add_argument("--seconds", type=float, default=0.6, help="a case")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also append the results to this file, one a line")
    options = parser.parse_args()
    known = [*operators, *SHAPES, *DTYPES]
    if unknown := [name for name in [*options.only, *options.shapes, *options.dtypes] if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}")
    return options


def main() -> None:
    os.environ.pop("CMODEL_FAST_EXEC", None)
    torch.set_num_threads(thread_count())
    device = CmodelDevice()
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "linear": lambda: cases.linear_cases(device, shapes, options.rows, options.dtypes),
        "gated_mlp": lambda: cases.gated_mlp_cases(device, shapes, options.rows),
        "quantized": lambda: cases.quantized_cases(device, shapes, options.rows),
        "experts": lambda: cases.expert_cases(device, options.rows),
        "attention": lambda: cases.attention_cases(device),
        "dense_attention": lambda: cases.tower_cases(device),
        "rms_norm": lambda: cases.norm_cases(device),
        "sample": lambda: cases.sample_cases(device),
    }
    options = parse(list(makers))
    shapes = {name: SHAPES[name] for name in options.shapes}
    machine = measure_limits(min(0.5, options.seconds))
    results = []
    with torch.inference_mode():
        for name in options.only:
            for case in makers[name]():
                result = measure(case, machine, options.seconds, options.turns)
                results.append(result)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
    print(f"{datetime.date.today()}, {cpu_model()}, commit {commit()}, {device.describe()}\n")
    print(f"{machine.describe()}\n")
    print(render(results))


if __name__ == "__main__":
    main()
