"""sophserve beside its peers on this machine: `compare.py --model DIRECTORY --peers vllm,llama.cpp,transformers,torch`.

Measures the machine's limits, then, in rounds, each system in a process of its own, one after the other. Samples are
appended to a file, and the tables are medians of all samples there: a comparison may be made in several short runs
(`--systems`, `--sizes`), and `--rounds 0` prints the tables alone. sophserve's samples of other commits are left out.

decode: tokens per second of all sequences together, without the prefill; the limit is batch / max(bytes / read
bandwidth, operations / product peak), the bytes being those of all weights a step uses, once, and of every sequence's
keys and values. prefill: the tokens of a prompt over the time to its first token; the limit is the product peak over
the operations. machine.py has both formulas, peers/ how each system is called.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import Limits, Shape, commit, cpu_model, measure_limits
from benchmarks.peers import setup, vllm_api
from benchmarks.peers.process import SystemFailed, SystemProcess
from benchmarks.peers.protocol import Workload
from device.cmodel.threads import thread_count

SHORT = [Workload("decode", batch, 128) for batch in (1, 8, 16)] + [Workload("prefill", 1, n) for n in (128, 1024)]
LONG = [Workload("decode", batch, 8192) for batch in (1, 8)] + [Workload("prefill", 1, 8192)]
WORKLOADS = {work.name: work for work in SHORT + LONG}
GROUPS = {"short": [work.name for work in SHORT], "long": [work.name for work in LONG]}
PEERS = ["vllm", "llama.cpp", "transformers", "torch"]
QUANTIZED = {"sophserve w4a16", "llama.cpp q4_0"}
READY, MEMORY = "ready, s", "peak memory, MiB"


@dataclass(frozen=True)
class Sample:
    """One measured number: tokens per second, seconds, MiB, or a field of Limits (system `machine`)."""

    model: str
    system: str
    what: str
    value: float
    commit: str


@dataclass(frozen=True)
class Row:
    """One row of a table, numbers before they are formatted. limits: for each system, None where there is none."""

    what: str
    values: dict[str, float]
    limits: dict[str, float]


class Samples:
    """The file of samples, one JSON object a line."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self._path = path
        if fresh:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, sample: Sample) -> None:
        """Append one."""
        with self._path.open("a") as file:
            file.write(json.dumps(vars(sample) | {"time": int(time.time())}) + "\n")

    def read(self, model: str, current: str) -> dict[tuple[str, str], float]:
        """Medians by (system, what), for this model; sophserve's of the current commit only."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        groups: dict[tuple[str, str], list[float]] = {}
        for entry in map(json.loads, lines):
            ours = entry["system"].startswith("sophserve")
            if entry["model"] in (model, "") and (not ours or entry["commit"] == current):
                groups.setdefault((entry["system"], entry["what"]), []).append(entry["value"])
        return {key: median(values) for key, values in groups.items()}


def systems(options: argparse.Namespace) -> dict[str, Callable[[], SystemProcess]]:
    """How to start each system that was asked for; peers are installed when they are first started."""
    threads, cpus = thread_count(), sorted(os.sched_getaffinity(0))
    peers: Path = options.peers_dir

    def start(
        module: str, model: Path, python: str | Path = sys.executable, environment: dict[str, str] | None = None
    ) -> SystemProcess:
        command = [python, "-m", f"benchmarks.peers.{module}", model, str(threads)]
        return SystemProcess(command, environment or {}, peers / f"{module}.log")

    def llama(kind: str) -> SystemProcess:
        programs = {"LLAMA_CPP_BIN": str(setup.llama_cpp_programs(peers))}
        return start("llama_cpp", setup.gguf(peers, options.model, kind), environment=programs)

    model: Path = options.model
    starters: dict[str, Callable[[], SystemProcess]] = {
        "sophserve": lambda: start("sophserve_api", model),
        "vllm": lambda: start("vllm_api", model, setup.vllm_python(peers), vllm_api.environment(cpus[:threads])),
        "llama.cpp": lambda: llama("bf16"),
        "transformers": lambda: start("transformers_model", model),
        "torch": lambda: start("torch_ops", model),
    }
    if options.quantized_model:
        starters["sophserve w4a16"] = lambda: start("sophserve_api", options.quantized_model)
        starters["llama.cpp q4_0"] = lambda: llama("q4_0")
    chosen = options.systems or ["sophserve", *options.peers, *(name for name in starters if name in QUANTIZED)]
    if unknown := [name for name in chosen if name not in starters]:
        sys.exit(f"no such system: {', '.join(unknown)}; there are {', '.join(starters)}")
    return {name: starters[name] for name in chosen}


def measure_system(
    name: str, start: Callable[[], SystemProcess], works: list[Workload], add: Callable[[str, str, float], None]
) -> None:
    """Run all workloads in one process. What fails is reported and left out."""
    try:
        with start() as process:
            add(name, READY, process.ready)
            for work in works:
                try:
                    add(name, work.name, work.tokens / process.measure(work))
                except SystemFailed as error:
                    print(f"{name}, {work.name}: {error}", file=sys.stderr)
            add(name, MEMORY, process.peak_mib)
    except SystemFailed as error:
        print(f"{name}: {error}", file=sys.stderr)


def cost(work: Workload, shape: Shape, weight_bytes: float) -> tuple[float, float]:
    """Operations, and bytes of memory that must be read."""
    if work.kind == "prefill":
        return shape.prefill_flops(work.context), weight_bytes
    return shape.decode_flops(work.batch, work.context), weight_bytes + shape.kv_bytes(work.batch, work.context)


def limit(work: Workload, shape: Shape, machine: Limits, weight_bytes: float) -> float:
    """Tokens per second that the machine allows."""
    operations, read = cost(work, shape, weight_bytes)
    return work.tokens / max(operations / machine.bfloat16_gflops, read / machine.read_gbs) * 1e9


def rows(
    medians: dict[tuple[str, str], float], names: list[str], shape: Shape, machine: Limits, weights: dict[str, float]
) -> list[Row]:
    """A row for everything that was measured of these systems."""
    table = []
    for what in (*WORKLOADS, READY, MEMORY):
        values = {name: medians[name, what] for name in names if (name, what) in medians}
        limits = {n: limit(WORKLOADS[what], shape, machine, weights[n]) for n in names if what in WORKLOADS}
        if values:
            table.append(Row(what, values, limits))
    return table


def render(table: list[Row], names: list[str]) -> str:
    """Markdown: each system's number, in brackets its share of the limit, then ours over each peer's."""
    ours, *peers = names
    head = ["", f"limit of {ours}", *names, *(f"{ours} / {peer}" for peer in peers)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in table:
        cells = [row.what, number(row.limits.get(ours))]
        for name in names:
            value, most = row.values.get(name), row.limits.get(name)
            share = "" if value is None or most is None else f" ({value / most:.0%})"
            cells.append(number(value) + share)
        for peer in peers:
            mine, other = row.values.get(ours), row.values.get(peer)
            cells.append("" if mine is None or not other else f"{mine / other:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits, more for large numbers; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(table: list[Row], names: list[str], shape: Shape, machine: Limits, weights: float, path: Path) -> None:
    """The roofline: operations per second over operations per byte of memory that must be read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    peak, bandwidth = machine.bfloat16_gflops, machine.read_gbs
    ends = [0.5, peak / bandwidth, 10_000]
    axes.plot(ends, [min(peak, bandwidth * x) for x in ends], color="black", label="the machine")
    places = {}
    for row in table:
        if work := WORKLOADS.get(row.what):
            operations, read = cost(work, shape, weights)
            places[row.what] = (operations / read, operations / work.tokens / 1e9)
    for name, marker in zip(names, "osD^vPX", strict=False):
        points = [(*places[row.what], row.values[name]) for row in table if row.what in places and name in row.values]
        axes.plot([x for x, _, _ in points], [each * rate for _, each, rate in points], marker, label=name, alpha=0.8)
    for what, (x, _) in places.items():
        axes.annotate(what, (x, 1.12 * min(peak, bandwidth * x)), rotation=60, fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="10^9 operations per second")
    axes.set_ylim(top=peak * 6)
    axes.set_title(f"bfloat16 on {cpu_model()}: {bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s ({machine.product})")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def report(options: argparse.Namespace, samples: Samples, machine: Limits) -> None:
    """Print the tables and draw the plot."""
    current, shape = commit(), Shape.of(options.model)
    medians = samples.read(options.model.name, current)
    fields = {name: medians.get(("machine", name), getattr(machine, name)) for name in Limits.__annotations__}
    machine = Limits(**{**fields, "product": machine.product})
    print(f"{datetime.date.today()}, {cpu_model()}, commit {current}, {options.model.name}, medians\n")
    print(f"{machine.describe()}\nTokens per second, (share of the machine's limit)\n")
    names = ["sophserve", *options.peers]
    table = rows(medians, names, shape, machine, dict.fromkeys(names, shape.weight_bytes))
    print(render(table, names))
    if options.plot:
        plot(table, names, shape, machine, shape.weight_bytes, options.plot)
    if options.quantized_model:
        names = sorted(QUANTIZED, reverse=True)
        ours = sum(file.stat().st_size for file in options.quantized_model.glob("*.safetensors"))
        theirs = setup.gguf(options.peers_dir, options.model, "q4_0").stat().st_size
        weights = {"sophserve w4a16": float(ours), "llama.cpp q4_0": float(theirs)}
        print("\n4-bit weights, every byte of the files being read at each step\n")
        print(render(rows(medians, names, shape, machine, weights), names))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sophserve-peers"
    names = lambda text: [each for each in text.split(",") if each]  # noqa: E731
    parser.add_argument("--model", type=Path, required=True, help="a bfloat16 checkpoint; see make_checkpoint.py")
    parser.add_argument("--quantized-model", type=Path, help="a 4-bit checkpoint of it: adds a table beside Q4_0")
    parser.add_argument("--peers", type=names, default=PEERS, help=f"the table's columns (default: {','.join(PEERS)})")
    parser.add_argument("--systems", type=names, help="measure only these now (default: sophserve and all peers)")
    parser.add_argument("--sizes", type=names, default=["short", "long"], help=f"short, long, {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-dir", type=Path, default=cache, help=f"where peers are installed (default: {cache})")
    parser.add_argument("--results", type=Path, help="the file of samples (default: in the peers' directory)")
    parser.add_argument("--fresh", action="store_true", help="forget the samples that are there")
    parser.add_argument("--install", action="store_true", help="only install the peers and convert the checkpoint")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("roofline.png"))
    options = parser.parse_args()
    options.peers_dir = options.peers_dir.expanduser().resolve()
    options.model = options.model.resolve()
    options.results = options.results or options.peers_dir / "samples.jsonl"
    sizes = [name for size in options.sizes for name in GROUPS.get(size, [size])]
    if unknown := [name for name in [*sizes, *options.peers] if name not in [*WORKLOADS, *PEERS]]:
        parser.error(f"unknown: {', '.join(unknown)}")
    options.sizes = [WORKLOADS[name] for name in sizes]
    return options


def install(options: argparse.Namespace) -> None:
    """Everything that takes long the first time."""
    if "vllm" in options.peers:
        setup.vllm_python(options.peers_dir)
    if "llama.cpp" in options.peers:
        setup.gguf(options.peers_dir, options.model, "bf16")
        if options.quantized_model:
            setup.gguf(options.peers_dir, options.model, "q4_0")


def main() -> None:
    # A run that `timeout` ends must end the system that it measures, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse()
    options.peers_dir.mkdir(parents=True, exist_ok=True)
    if options.install:
        install(options)
        return
    samples = Samples(options.results, options.fresh)
    current = commit()

    def add(system: str, what: str, value: float) -> None:
        print(f"{system}: {what} {number(value)}", file=sys.stderr, flush=True)
        samples.add(Sample("" if system == "machine" else options.model.name, system, what, value, current))

    machine = None
    chosen = systems(options)
    for _ in range(options.rounds):
        machine = measure_limits()
        for field in ("read_gbs", "float32_gflops", "bfloat16_gflops"):
            add("machine", field, getattr(machine, field))
        for name, start in chosen.items():
            measure_system(name, start, options.sizes, add)
    report(options, samples, machine or measure_limits(0.1))


if __name__ == "__main__":
    main()
