"""The command `sophserve load`: drives any OpenAI-compatible server, and measures what its users feel."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import uvloop

from sophserve.bench import load_report
from sophserve.bench.load_client import PATHS, Client, LoadError, Prompt, Target
from sophserve.bench.load_metrics import Report, parse_slo, summarize
from sophserve.bench.load_prompts import IMAGE_FORMATS, Vocabulary, random_prompts, read_prompts, with_images
from sophserve.bench.load_run import LoadRun, arrivals
from sophserve.bench.load_scenarios import SCENARIOS, render_answers, save_logs
from sophserve.bench.random_images import image_size
from sophserve.errors import ConfigError
from sophserve.http_client import server_address
from sophserve.options import CommandParser, add_switch

DATASETS = ("random", "shared-prefix", "random-image", "file")
CONCURRENCY = 8
REQUESTS = 100
LONGEST_PROMPT = 10_000_000


@dataclass(frozen=True)
class Options(Target):
    """Those of the command line; None where the default depends on others."""

    url: str = "http://localhost:8000"
    api_key: str = field(default_factory=lambda: os.environ.get("SOPHSERVE_API_KEY", ""))
    scenario: str | None = None
    dataset: str = "random"
    dataset_path: str | None = None
    input_length: int = 128
    output_length: int | None = None
    prefix_length: int = 512
    image_size: tuple[int, int] = (512, 512)
    image_format: str = "jpeg"
    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int | None = None
    num_requests: int | None = None
    duration: float | None = None
    seed: int = field(default_factory=lambda: random.randrange(2**32))
    slo: list[str] = field(default_factory=list)
    save_json: str | None = None
    save_png: str | None = None


def _number(kind: type[int] | type[float], least: str = "above 0") -> Callable[[str], float]:
    """Reads a finite number "above 0" or of "0 or more", for argparse."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not (0 < value < math.inf or (value == 0 and least == "0 or more")):
            raise argparse.ArgumentTypeError(f"expected a {'whole ' if kind is int else ''}number, {least}")
        return value

    return read


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def parse(argv: Sequence[str]) -> Options:
    """The options that a command line gives. Raises ConfigError if they do not go together."""
    parser = CommandParser("load", "Drive an OpenAI-compatible server and measure latency, throughput and goodput.")
    count, positive = _number(int), _number(float)
    group = parser.add_argument_group("server")
    add = group.add_argument
    add("--url", metavar="TEXT", help=f"default: {Options.url}")
    add("--model", metavar="TEXT", help="default: the first of /v1/models")
    add("--api-key", metavar="TEXT", help="default: SOPHSERVE_API_KEY")
    add("--endpoint", choices=tuple(PATHS), help=f"default: {Options.endpoint}")
    add_switch(group, "--stream", "stream the answers; without it only whole latencies are seen (default: on)")
    add_switch(group, "--ignore-eos", "answers of full length (default: on, but for files)")
    add("--temperature", type=_number(float, "0 or more"), metavar="N", help="default: 0")
    add("--extra-body", type=_object, metavar="JSON", help="further fields of every request")
    add("--timeout", type=positive, metavar="S", help=f"of a request (default: {Options.timeout:g})")
    add = parser.add_argument_group("prompts").add_argument
    add("--scenario", choices=tuple(SCENARIOS), help="prompts of ours, with a verdict")
    add("--dataset", choices=DATASETS, help=f"default: {Options.dataset}")
    add("--dataset-path", metavar="FILE", help="JSONL with prompt or messages, perhaps max_tokens")
    add("--input-length", type=count, metavar="N", help=f"tokens (default: {Options.input_length})")
    add("--output-length", type=count, metavar="N", help="tokens (default: 128, or the scenario's)")
    add("--prefix-length", type=count, metavar="N", help="tokens that all prompts share (default: 512)")
    add("--image-size", type=image_size, metavar="WxH", help="pixels of random images (default: 512x512)")
    add("--image-format", choices=IMAGE_FORMATS, help=f"default: {Options.image_format}")
    add("--seed", type=int, metavar="N", help="of prompts and arrivals (default: a new one, shown)")
    add = parser.add_argument_group("load").add_argument
    add("--rate", "--request-rate", type=positive, metavar="N", help="requests a second (default: no waiting)")
    add("--burstiness", type=positive, metavar="N", help="1 is Poisson, less is burstier (default: 1)")
    add("--concurrency", "--max-concurrency", type=count, metavar="N", help="at once (default: 8; none with --rate)")
    add("--num-requests", "--num-prompts", type=count, metavar="N", help="default: 100, or one for each line")
    add("--duration", type=positive, metavar="S", help="send for so long, then wait for the answers")
    add = parser.add_argument_group("results").add_argument
    add("--slo", nargs="+", action="extend", metavar="NAME:MS", help="such as ttft:500 tpot:50")
    add("--save-json", metavar="FILE", help="everything, each request with its times")
    add("--save-png", metavar="FILE", help="requests over time, and distributions")
    given = vars(parser.parse_args(argv))
    options = Options(**given)
    options = replace(options, url=server_address(options.url))
    _check(options, set(given))
    return options


def _check(options: Options, given: set[str]) -> None:
    unused = {"dataset_path"} if options.dataset != "file" else {"input_length"}
    if options.dataset != "shared-prefix":
        unused.add("prefix_length")
    if options.dataset != "random-image":
        unused |= {"image_size", "image_format"}
    where = f"--dataset {options.dataset}"
    if options.scenario is not None:
        load = {"rate", "burstiness", "concurrency", "num_requests", "duration"}
        unused, where = {*unused, "dataset", "dataset_path", "input_length", "prefix_length", *load}, "--scenario"
    if wrong := [each.name for each in fields(Options) if each.name in unused & given]:
        raise ConfigError(f"--{wrong[0].replace('_', '-')} has no meaning with {where}")
    for name in ("input_length", "prefix_length"):
        if getattr(options, name) > LONGEST_PROMPT:
            raise ConfigError(f"--{name.replace('_', '-')} must be at most {LONGEST_PROMPT}")
    if options.dataset == "file" and options.dataset_path is None:
        raise ConfigError("--dataset file needs --dataset-path FILE")
    if options.dataset == "random-image" and options.endpoint != "chat":
        raise ConfigError("--dataset random-image needs --endpoint chat")
    if "burstiness" in given and options.rate is None:
        raise ConfigError("--burstiness needs --rate")
    slo = parse_slo(options.slo)
    if not options.stream and (options.scenario is not None or slo.keys() & {"ttft", "tpot"}):
        raise ConfigError("without --stream only --slo e2el can be measured, and no --scenario")
    load_report.check_files(options.save_json, options.save_png)
    if options.save_png is not None and find_spec("matplotlib") is None:
        raise ConfigError("--save-png needs matplotlib: pip install 'sophserve[plot]'")


def load(argv: Sequence[str]) -> int:
    """Run a load or a scenario; 0 if every request was answered, and the verdict is good."""
    return uvloop.run(run(parse(argv)))


async def run(options: Options) -> int:
    """As `load`, in an event loop."""
    return await (_load(options) if options.scenario is None else _scenario(options))


@asynccontextmanager
async def _prepared(options: Options, ignore_eos: bool) -> AsyncIterator[Client]:
    """A client that has found its model, and what the server refuses. ignore_eos: where the options leave it open."""
    target = options if options.ignore_eos is not None else replace(options, ignore_eos=ignore_eos)
    async with Client(target) as client:
        for note in await client.prepare():
            print(f"note: {note}", file=sys.stderr)
        yield client


async def _load(options: Options) -> int:
    async with _prepared(options, ignore_eos=options.dataset != "file") as client:
        chance = random.Random(options.seed)
        prompts, total = await _prompts(options, client, chance)
        limit = options.concurrency or (CONCURRENCY if options.rate is None else None)
        run = LoadRun(client, prompts, arrivals(options.rate, options.burstiness, chance), limit, options.duration)
        await run.run(total)
    title = f"{client.model} at {options.url}, {options.endpoint}: {_describe(options, limit)}"
    return _finish(options, client, title, run)


async def _prompts(options: Options, client: Client, chance: random.Random) -> tuple[Iterable[Prompt], int | None]:
    """What to send, and how many where that is known."""
    output = options.output_length or 128
    total = options.num_requests or (None if options.duration is not None else REQUESTS)
    if options.dataset_path is not None:
        lines = read_prompts(options.dataset_path, options.endpoint, output)
        if options.num_requests is None and options.duration is None:
            total = len(lines)
        return islice(cycle(lines), total), total
    prefix = options.prefix_length if options.dataset == "shared-prefix" else 0
    vocabulary = await Vocabulary.of(client)
    prompts = random_prompts(vocabulary, chance, prefix, options.input_length, output)
    if options.dataset != "random-image":
        return islice(prompts, total), total
    prompts = with_images(prompts, chance, options.image_size, options.image_format)
    await client.prompt_tokens(replace(next(prompts), max_tokens=1))  # fails where the model does not see
    # Images take a while to make: they are there before the clock runs, where it is known how many there will be.
    return (prompts if total is None else list(islice(prompts, total))), total


async def _scenario(options: Options) -> int:
    assert options.scenario is not None
    scenario = SCENARIOS[options.scenario]
    texts = scenario.prompts()
    prompts = [Prompt(text, options.output_length or scenario.output_length) for text in texts]
    async with _prepared(options, ignore_eos=scenario.ignore_eos) as client:
        run = LoadRun(client, prompts, arrivals(None, 1, random.Random()), len(prompts) if scenario.together else 1)
        await run.run(len(prompts))
    code = _finish(options, client, f"{client.model} at {options.url}, scenario {options.scenario}", run)
    logs = save_logs(options.scenario, texts, run.outcomes)
    print(f"\n{render_answers(texts, run.outcomes)}\n\nanswers: {' '.join(logs)}")
    if code:
        print("FAIL: not every question was answered")
        return code
    passed, why = scenario.judge(run.outcomes)
    print(f"{'PASS' if passed else 'FAIL'}: {why}")
    return 0 if passed else 1


def _describe(options: Options, limit: int | None) -> str:
    output = options.output_length or 128
    dataset = options.dataset_path or f"{options.dataset} {options.input_length} to {output} tokens"
    if options.dataset == "random-image":
        dataset += f" with {options.image_format} of {options.image_size[0]} x {options.image_size[1]}"
    pace = "" if options.rate is None else f", {options.rate:g} requests/s"
    return f"{dataset}{pace}{'' if limit is None else f', {limit} at once'}, seed {options.seed}"


def _finish(options: Options, client: Client, title: str, run: LoadRun) -> int:
    """Print and save what there is, and return the exit code."""
    report = summarize(run.outcomes, parse_slo(options.slo))
    print(f"{title}\n\n{load_report.render(report)}")
    _save(options, client, title, report, run)
    if run.stopped:
        print(f"sophserve load: error: {run.stopped}; the results are those until then", file=sys.stderr)
    if run.stopped == "interrupted":
        return 130
    return 1 if run.stopped or report.failed or not report.completed else 0


def _save(options: Options, client: Client, title: str, report: Report, run: LoadRun) -> None:
    settings = asdict(options) | {"model": client.model, "date": datetime.now().astimezone().isoformat("T", "seconds")}
    del settings["api_key"]
    try:
        if options.save_json is not None:
            load_report.save_json(options.save_json, settings, report, run.outcomes, run.stopped)
        if options.save_png is not None:
            load_report.save_png(options.save_png, title, report, run.outcomes)
    except OSError as error:
        raise LoadError(f"cannot write the results: {error}") from None
