"""sophserve beside its peers on this machine: `compare.py --model DIRECTORY --peers vllm,llama.cpp,transformers,torch`.

Measures the machine's limits, then, in rounds, each system in a process of its own, one after the other. Samples are
appended to a file, and the tables are medians of all samples there: a comparison may be made in several short runs
(`--systems`, `--sizes`), and `--rounds 0` prints the tables alone. sophserve's samples of other commits are left out.

decode: tokens per second of all sequences together, without the prefill; the limit is batch / max(bytes / read
bandwidth, operations / product peak), the bytes being those of all weights a step uses, once, and of what is cached of
every sequence. Of a layer's experts, those are read that some of the tokens is expected to choose: of E experts,
E * (1 - (1 - k / E) ^ tokens). prefill: the tokens of a prompt over the time to its first token; the limit is the
product peak over the operations. machine.py has the formulas, peers/ how each system is called.

What a step takes at several lengths (`--sizes context`) gives the cost of one more token of context, by a fitted line.
What a system cannot do stands below the table, in its own words.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import linear_regression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import Limits, Matrices, Shape, checkpoint_matrices, commit, cpu_model, measure_limits
from benchmarks.peers import setup, vllm_api
from benchmarks.peers.process import SystemFailed, SystemProcess
from benchmarks.peers.protocol import Workload
from benchmarks.samples import Failure, Sample, Samples
from device.cpus import thread_count

SHORT = [Workload("decode", batch, 128) for batch in (1, 8, 16)] + [Workload("prefill", 1, n) for n in (128, 1024)]
LONG = [Workload("decode", batch, 8192) for batch in (1, 8)] + [Workload("prefill", 1, 8192)]
CONTEXT = [Workload("decode", 1, context) for context in (128, 1024, 2048, 4096)]
WORKLOADS = {work.name: work for work in SHORT + CONTEXT + LONG}
GROUPS = {name: [w.name for w in works] for name, works in [("short", SHORT), ("context", CONTEXT), ("long", LONG)]}
PEERS = ["vllm", "llama.cpp", "transformers", "torch"]
READY, MEMORY = "ready, s", "peak memory, MiB"


@dataclass(frozen=True)
class Row:
    """One row of a table, numbers before they are formatted. limits: for each system, None where there is none."""

    what: str
    values: dict[str, float]
    limits: dict[str, float]


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint of the same model, and the columns of its table."""

    directory: Path
    ours: str
    vllm: str
    llama: str
    kind: str  # of GGUF

    @classmethod
    def of(cls, directory: Path) -> Quantized:
        """Read `directory/config.json`: 8 bits stand beside Q8_0, 4 bits beside Q4_0."""
        settings = json.loads((directory / "config.json").read_text())["quantization_config"]
        label, kind = ("fp8", "q8_0") if settings["quant_method"] == "fp8" else ("w4a16", "q4_0")
        return cls(directory, f"sophserve {label}", f"vllm {label}", f"llama.cpp {kind}", kind)

    def systems(self, peers: list[str]) -> list[str]:
        """Ours, then the peers' among those that are asked for."""
        return [self.ours] + [name for peer, name in (("vllm", self.vllm), ("llama.cpp", self.llama)) if peer in peers]


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

    def vllm(model: Path) -> SystemProcess:
        return start("vllm_api", model, setup.vllm_python(peers), vllm_api.environment(cpus[:threads]))

    model: Path = options.model
    starters: dict[str, Callable[[], SystemProcess]] = {
        "sophserve": lambda: start("sophserve_api", model),
        "vllm": lambda: vllm(model),
        "llama.cpp": lambda: llama("bf16"),
        "transformers": lambda: start("transformers_model", model),
        "torch": lambda: start("torch_ops", model),
    }
    for each in options.quantized_model:
        starters[each.ours] = partial(start, "sophserve_api", each.directory)
        starters[each.vllm] = partial(vllm, each.directory)
        starters[each.llama] = partial(llama, each.kind)
    quantized = [name for each in options.quantized_model for name in each.systems(options.peers)]
    chosen = options.systems or ["sophserve", *options.peers, *quantized]
    if unknown := [name for name in chosen if name not in starters]:
        sys.exit(f"no such system: {', '.join(unknown)}; there are {', '.join(starters)}")
    return {name: starters[name] for name in chosen}


def measure_system(
    start: Callable[[], SystemProcess],
    works: list[Workload],
    add: Callable[[str, float], None],
    fail: Callable[[str, str], None],
) -> None:
    """Run all workloads in one process; `add` and `fail` are told what came of each."""
    try:
        with start() as process:
            add(READY, process.ready)
            for work in works:
                try:
                    add(work.name, work.tokens / process.measure(work))
                except SystemFailed as error:
                    fail(work.name, str(error))
            add(MEMORY, process.peak_mib)
    except SystemFailed as error:
        fail("start", str(error))


def cost(work: Workload, shape: Shape, weights: Matrices) -> tuple[float, float]:
    """Operations, and bytes of memory that must be read; `weights` are bytes."""
    read = weights.used(shape.experts_read(work.tokens))
    if work.kind == "prefill":
        return shape.prefill_flops(work.context), read
    return shape.decode_flops(work.batch, work.context), read + shape.kv_bytes(work.batch, work.context)


def limit(work: Workload, shape: Shape, machine: Limits, weights: Matrices) -> float:
    """Tokens per second that the machine allows."""
    operations, read = cost(work, shape, weights)
    return work.tokens / max(operations / machine.bfloat16_gflops, read / machine.read_gbs) * 1e9


def rows(
    medians: dict[tuple[str, str], float], names: list[str], shape: Shape, machine: Limits, weights: dict[str, Matrices]
) -> list[Row]:
    """A row for everything that was measured of these systems; `weights` are the bytes of each."""
    table = []
    for what in (*WORKLOADS, READY, MEMORY):
        values = {name: medians[name, what] for name in names if (name, what) in medians}
        limits = {n: limit(WORKLOADS[what], shape, machine, weights[n]) for n in names if what in WORKLOADS}
        if values:
            table.append(Row(what, values, limits))
    return table


def context_slope(medians: dict[tuple[str, str], float], system: str) -> float | None:
    """Seconds that each token of context adds to a step of one sequence; None for fewer than three lengths."""
    single = [work for work in WORKLOADS.values() if work.kind == "decode" and work.batch == 1]
    points = [(w.context, 1 / medians[system, w.name]) for w in single if (system, w.name) in medians]
    return linear_regression(*zip(*points, strict=True)).slope if len(points) >= 3 else None


def describe_slopes(medians: dict[tuple[str, str], float], names: list[str], shape: Shape, machine: Limits) -> str:
    """A table of context_slope beside the time to read what is cached of a token."""
    least = shape.token_bytes / machine.read_gbs  # nanoseconds
    slopes = {name: slope * 1e9 for name in names if (slope := context_slope(medians, name)) is not None}
    if not slopes:
        return ""
    lines = [f"A token of context is {shape.token_bytes} bytes, read in {number(least)} ns. What it adds to a step:\n"]
    lines += ["| | ns | of its reading |", "|---|---|---|"]
    lines += [f"| {name} | {number(slope)} | {number(slope / least)} |" for name, slope in slopes.items()]
    return "\n".join(lines) + "\n"


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


def plot(table: list[Row], names: list[str], shape: Shape, machine: Limits, weights: Matrices, path: Path) -> None:
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
    """Print the tables, and draw the plot if it is asked for."""
    current, shape = commit(), Shape.of(options.model)
    medians, failures = (read(options.model.name, current) for read in (samples.read, samples.failures))
    fields = {name: medians.get(("machine", name), getattr(machine, name)) for name in Limits.__annotations__}
    machine = Limits(**{**fields, "product": machine.product})
    print(f"{datetime.date.today()}, {cpu_model()}, commit {current}, {options.model.name}, medians\n")
    print(f"{machine.describe()}\nTokens per second, (share of the machine's limit)\n")
    plain = checkpoint_matrices(options.model)[1]
    tables = [dict.fromkeys(["sophserve", *options.peers], plain)]
    for each in options.quantized_model:
        ours = checkpoint_matrices(each.directory)[1]
        sizes = {each.ours: ours, each.vllm: ours}
        if "llama.cpp" in options.peers:
            sizes[each.llama] = setup.gguf_matrices(options.peers_dir, options.model, each.kind)[1]
        tables.append({name: sizes[name] for name in each.systems(options.peers)})
    for weights in tables:
        names = list(weights)
        table = rows(medians, names, shape, machine, weights)
        print(render(table, names) + "\n")
        print(describe_slopes(medians, names, shape, machine))
        print("".join(f"- {s}, {what}: {e}\n" for (s, what), e in failures.items() if s in names))
        if options.plot and weights is tables[0]:
            plot(table, names, shape, machine, plain, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sophserve-peers"
    names = lambda text: [each for each in text.split(",") if each]  # noqa: E731
    parser.add_argument("--model", type=Path, required=True, help="a bfloat16 checkpoint; see make_checkpoint.py")
    quantized = "a 4-bit or float8 checkpoint of it: adds a table beside Q4_0 or Q8_0; can be repeated"
    parser.add_argument("--quantized-model", type=Path, action="append", default=[], help=quantized)
    parser.add_argument("--peers", type=names, default=PEERS, help=f"the table's columns (default: {','.join(PEERS)})")
    parser.add_argument("--systems", type=names, help="measure only these now (default: sophserve and all peers)")
    parser.add_argument("--sizes", type=names, default=["short", "long"], help=f"{', '.join([*GROUPS, *WORKLOADS])}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-dir", type=Path, default=cache, help=f"where peers are installed (default: {cache})")
    parser.add_argument("--results", type=Path, help="the file of samples (default: in the peers' directory)")
    parser.add_argument("--fresh", action="store_true", help="forget the samples that are there")
    parser.add_argument("--install", action="store_true", help="only install the peers and convert the checkpoint")
    parser.add_argument("--plot", type=Path, help="draw the roofline of the first table into this file")
    options = parser.parse_args()
    options.peers_dir = options.peers_dir.expanduser().resolve()
    options.model = options.model.resolve()
    options.quantized_model = [Quantized.of(directory.resolve()) for directory in options.quantized_model]
    options.results = options.results or options.peers_dir / "samples.jsonl"
    sizes = list(dict.fromkeys(name for size in options.sizes for name in GROUPS.get(size, [size])))
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
        for each in options.quantized_model:
            setup.gguf(options.peers_dir, options.model, each.kind)


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

    def fail(system: str, what: str, error: str) -> None:
        print(f"{system}: {what} failed: {error}", file=sys.stderr, flush=True)
        samples.add(Failure(options.model.name, system, what, error, current))

    machine = None
    chosen = systems(options)
    for _ in range(options.rounds):
        machine = measure_limits()
        for field in ("read_gbs", "float32_gflops", "bfloat16_gflops"):
            add("machine", field, getattr(machine, field))
        for name, start in chosen.items():
            measure_system(start, options.sizes, partial(add, name), partial(fail, name))
    report(options, samples, machine or measure_limits(0.1))


if __name__ == "__main__":
    main()
