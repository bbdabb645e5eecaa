"""`sophserve doctor`: what this machine gives, what costs speed on it, and how fast a model will run here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import msgspec

from sophserve.checkpoint import resolve_config
from sophserve.config import read_count
from sophserve.measure.diagnosis import Diagnosis, DiagnosisRequest, Forecast, diagnose
from sophserve.options import CommandParser, add_engine_options, engine_config
from sophserve.table import rows_of, size

OPTIONS = ("device", "dtype", "quantization", "activation_bits", "head_bits")
# From this part on of what a device can read or do it is that which limits a step.
_MOST = 0.7
# CPUs' worth of others' work that disturbs.
_BUSY = 0.2


def doctor(argv: Sequence[str]) -> int:
    """Print what there is, and what to change."""
    parser = CommandParser("doctor", "Measure this machine, say what costs speed on it, and how fast a model will run.")
    parser.add_argument("--model", metavar="MODEL", help="a directory with a config.json, or a Hub id")
    parser.add_argument("--input-length", metavar="N", type=read_count, help="of its prompts (default: 512)")
    add_engine_options(parser, OPTIONS)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    given = vars(parser.parse_args(argv))
    model = given.get("model")
    config = engine_config({**{name: given[name] for name in OPTIONS if name in given}, "model": model or "demo"})
    directory = str(resolve_config(model)) if model else None
    found = diagnose(DiagnosisRequest(config=config, directory=directory, length=given.get("input_length")))
    warnings = list(advice(found))
    if given.get("json"):
        print(json.dumps(msgspec.to_builtins(found) | {"warnings": warnings}, indent=2))
    else:
        print("\n".join([*_text(found), *(f"warning: {each}" for each in warnings)]))
    return 0


def advice(found: Diagnosis) -> Iterator[str]:
    """What costs speed, and what to change."""
    yield from _about_threads(found)
    host, model = found.host, found.model
    if host.busy > _BUSY:
        yield (
            f"others keep {host.busy:.1f} of {found.hardware_threads} CPUs busy; what was measured is what they leave, "
            "and will be more without them"
        )
    if host.saves_power:
        yield f"the CPUs save power ({host.saves_power}); run cpupower frequency-set -g performance"
    if host.huge_pages == "never":
        yield (
            "transparent huge pages are off, so that reading weights waits for the translation of addresses; write "
            "madvise to /sys/kernel/mm/transparent_hugepage/enabled"
        )
    elif found.huge is not None and found.huge < 0.5:
        yield (
            f"only {found.huge:.0%} of a large weight came to lie in huge pages, for free memory is in small pieces; "
            "restart the machine, or write 1 to /proc/sys/vm/compact_memory"
        )
    if host.swap_used > found.memory // 20:
        yield f"{size(host.swap_used)} are swapped out: what runs here needs more memory than there is; stop some of it"
    if model and model.weight_bytes >= model.device_memory:
        yield (
            f"the model's weights take {size(model.weight_bytes)}, and {size(model.device_memory)} are free; quantize "
            "it, or choose a smaller one"
        )


def _about_threads(found: Diagnosis) -> Iterator[str]:
    wanted, cores, paid = found.wanted, found.cores, found.quota or math.inf
    if found.threads > paid:
        yield (
            f"{found.threads} threads share a quota of {paid:g} CPUs and all stand still for a part of each period; "
            "raise the CPU limit to a whole number, or set OMP_NUM_THREADS to less"
        )
    if wanted and wanted > cores:
        yield f"OMP_NUM_THREADS is {wanted}, but there are {cores} cores, so that threads wait for others; unset it"
    if wanted and wanted < min(cores, paid):
        yield f"OMP_NUM_THREADS is {wanted}, and the other {cores - wanted} of {cores} cores compute nothing; unset it"


def limit_of(forecast: Forecast) -> str:
    """What keeps a step from being faster, in a word or two."""
    if max(forecast.reads, forecast.products) < _MOST:
        return "the kernels"
    return "memory" if forecast.reads >= forecast.products else "products"


def _text(found: Diagnosis) -> list[str]:
    host = found.host
    swap = f"{size(host.swap_used)} of {size(host.swap)} swap in use" if host.swap else "no swap"
    huge = "" if found.huge is None else f"; {found.huge:.0%} of a weight came to lie in them"
    quota = "no quota" if found.quota is None else f"a quota of {found.quota:g} CPUs"
    lines = [
        f"CPU           {host.cpu}: {found.cores} cores, {found.hardware_threads} hardware threads, {found.nodes} NUMA "
        f"node{'s' if found.nodes > 1 else ''}, {quota}",
        f"device        {found.device}",
        f"threads       {found.threads}, {_reason(found)}",
        f"memory        {size(found.free)} free of {size(found.memory)}, {swap}",
        f"huge pages    {host.huge_pages or 'not told by the system'}{huge}",
    ]
    if found.limits:
        lines.append(f"reads         {found.limits.bandwidth / 1e9:.1f} GB/s")
        lines.append(f"products      {found.limits.rate / 1e9:.1f} GFLOP/s")
    if found.formats:
        cells = [[each.name, f"{each.read / 1e9:.1f}", f"{each.rate / 1e9:.1f}"] for each in found.formats]
        lines += ["", *rows_of(["weights", "GB/s, one row", "GFLOP/s"], cells)]
    if found.model:
        lines += ["", *_model(found)]
    return lines


def _reason(found: Diagnosis) -> str:
    """Why there are so many threads."""
    if found.wanted:
        return "as OMP_NUM_THREADS says"
    return "one for each core" if found.threads == found.cores else "as many as the quota pays for"


def _model(found: Diagnosis) -> list[str]:
    model = found.model
    assert model is not None
    kind = f"{model.dtype} with {model.quantization} weights" if model.quantization else model.dtype
    lines = [f"model         {model.architecture}, {kind}: {size(model.weight_bytes)} of weights"]
    cells = [
        [
            f"{each.work}, batch {each.batch}, {each.length} tokens",
            f"{each.tokens_per_second:.1f}",
            f"{each.reads:.0%}",
            f"{each.products:.0%}",
            limit_of(each),
        ]
        for each in found.forecasts
    ]
    if cells:
        lines += rows_of(["", "tokens/s", "of reads", "of products", "limited by"], cells)
    return lines
