"""`sophserve bench`: loads one model and measures batches offline, twice each."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sophserve.bench import offline_report as report
from sophserve.bench.load_report import check_files
from sophserve.bench.offline_images import BenchImages
from sophserve.bench.offline_prompts import make_prompts
from sophserve.bench.offline_result import ImageTimes, Reckoning, Setting
from sophserve.bench.offline_run import Pass, logprobs_of, peak_worker_memory, run_pass
from sophserve.bench.quality import AnswerQuality, Verdict, judge, judge_answer
from sophserve.bench.random_images import image_size
from sophserve.checkpoint import end_token_ids, resolve_model
from sophserve.errors import ConfigError
from sophserve.image_prompt import ImagePrompt
from sophserve.llm import AsyncLLM
from sophserve.measure.footprint import Footprint, FootprintRequest, measure
from sophserve.measure.limits import limits_of
from sophserve.options import CommandParser, add_engine_options, add_switch, engine_config

# As the server's; the other options of the engine follow from the batch, or have the names of Sophgo's vLLM port.
ENGINE_OPTIONS = (
    "device", "activation_bits", "head_bits", "block_size", "kv_cache_memory", "enforce_eager", "reorder_cache_dir",
    "speculation", "speculative_model", "speculative_tokens",
)  # fmt: skip
DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
SIZES = {"batch": "batch", "input-length": "input_length", "max-new-tokens": "max_new_tokens"}
# Tokens of one step: prompts of a batch beyond it are prefilled in pieces.
_MOST_STEP_TOKENS = 16384


class Measured(NamedTuple):
    """A batch before it is judged by what the device can do: the lengths of the prompts, the passes, the memory."""

    setting: Setting
    prompts: list[int]
    passes: tuple[Pass, Pass]
    memory: int
    quality: Verdict | None
    images: ImageTimes | None


def bench(argv: Sequence[str]) -> int:
    """Measure, print and save."""
    given = _parser().parse_args(argv)
    settings = _settings(given)
    plot_file = given.plot or ("bench.png" if given.sweep else None)
    check_files(given.save_results, given.save_json, plot_file)
    if given.save_results:
        report.check_columns(given.save_results)
    golden = _golden(given, settings)
    directory = resolve_model(given.model)
    images = BenchImages(directory, given.image_size, given.seed) if given.image_size else None
    image_tokens = images.tokens if images else 0
    options = _engine_options(given, settings, image_tokens)
    footprint = _footprint(options, directory, settings, image_tokens)
    if given.use_v1:
        print("--use-v1 is accepted without effect: there is one engine", file=sys.stderr)
    measured, device = asyncio.run(_measure(given, options, settings, golden, images))
    limits = None if given.skip_limits else limits_of(options["device"], footprint.dtype)
    reckoning = Reckoning(footprint, given.tp_size, limits)
    results = [reckoning.result(*each) for each in measured]
    lines = [f"{footprint.architecture}, {footprint.dtype}, {device}"]
    if given.sweep:
        lines += ["", *report.table(results)]
    else:
        lines += report.text(results[0], limits)
    print("\n".join(lines))
    meta = report.machine() | {"run": _description(given, footprint, device)}
    if given.save_results:
        report.save_csv(given.save_results, meta, results)
    if given.save_json:
        report.save_json(given.save_json, meta, limits, results)
    if plot_file and report.save_plot(plot_file, results):
        print(f"\n{plot_file}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("bench", "Measure a model offline: the time to the first token (FTL) and tokens/s (TPS).")
    add = parser.add_argument
    add(
        "--model", "--model-id", required=True, metavar="MODEL", help="a directory with a checkpoint, a Hub id, or demo"
    )
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16", *DTYPES), help="default: auto")
    add("--quantize", "--quantization", default=None, metavar="METHOD", help="as the server's --quantization")
    add("--batch", type=_count, default=1, metavar="N", help="prompts answered together (default: 1)")
    add("--input-length", type=_count, default=128, metavar="N", help="tokens of each prompt (default: 128)")
    add("--max-new-tokens", type=_count, default=1024, metavar="N", help="tokens of each answer (default: 1024)")
    add(
        "--tp-size", "--tp_size", "--tensor-parallel-size", type=_count, default=1, metavar="N",
        help="devices to split the model over (default: 1)",
    )  # fmt: skip
    add("--mode", choices=("chat", "generate"), default="generate", help="chat: within the chat template")
    add("--seed", type=int, default=0, metavar="N", help="chooses where in the texts prompts begin (default: 0)")
    add("--sweep", nargs="+", default=None, metavar="NAME=N,N,...", help="measure all of these: " + ", ".join(SIZES))
    add("--quality-check", action="store_true", default=False, help="also judge what was written")
    add("--golden", default=None, metavar="FILE", help="a file of --save-json: compare the answers with its own")
    add(
        "--save-results", nargs="?", const="bench.csv", default=None, metavar="FILE",
        help="append to a CSV file (bench.csv)",
    )  # fmt: skip
    add("--save-json", default=None, metavar="FILE", help="write everything")
    add("--plot", default=None, metavar="FILE", help="draw a PNG; with --sweep bench.png is")
    add("--skip-limits", action="store_true", default=False, help="do not measure what the device can do")
    add("--image-size", type=image_size, default=None, metavar="WxH", help="begin each prompt with an image")
    add_switch(parser, "--use-v1", "accepted without effect")
    add("--useV1", dest="use_v1", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(use_v1=False)
    add_engine_options(parser, ENGINE_OPTIONS)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _settings(given: argparse.Namespace) -> list[Setting]:
    """What to measure, in order."""
    values = {field: [getattr(given, field)] for field in SIZES.values()}
    for entry in given.sweep or []:
        name, _, numbers = entry.partition("=")
        if name not in SIZES:
            raise ConfigError(f"--sweep has {entry!r}; it takes NAME=N,N,... for {', '.join(SIZES)}")
        try:
            values[SIZES[name]] = [_count(number) for number in numbers.split(",")]
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"--sweep has {entry!r}: {error}") from None
    lengths = product(values["input_length"], values["max_new_tokens"], values["batch"])
    return [Setting(batch, length, new) for length, new, batch in lengths]


def _golden(given: argparse.Namespace, settings: list[Setting]) -> list[list[int]] | None:
    if given.golden is None:
        return None
    if given.sweep:
        raise ConfigError("--golden compares one batch; leave out --sweep")
    return report.read_golden(given.golden, settings[0].batch)


def _engine_options(given: argparse.Namespace, settings: list[Setting], image_tokens: int) -> dict[str, Any]:
    """The options of EngineConfig."""
    batch = max(setting.batch for setting in settings)
    tokens = max(setting.batch * (setting.input_length + image_tokens) for setting in settings)
    options = {
        "model": given.model,
        "dtype": DTYPES.get(given.dtype, given.dtype),
        "quantization": given.quantize,
        "tensor_parallel_size": given.tp_size,
        "max_num_seqs": batch,
        "max_num_batched_tokens": max(2048, batch, min(tokens, _MOST_STEP_TOKENS)),
        # The measured pass has the warm-up's prompts, but for images.
        "enable_prefix_caching": image_tokens > 0,
        "speculation": "draft" if hasattr(given, "speculative_model") else "off",
    }
    options |= {name: getattr(given, name) for name in ENGINE_OPTIONS if hasattr(given, name)}
    options["device"] = engine_config(options).device
    return options


def _footprint(options: dict[str, Any], directory: Path, settings: list[Setting], image_tokens: int) -> Footprint:
    """Also sets the length that is served. Raises ConfigError for more than the model's context."""
    footprint = measure(FootprintRequest(directory=str(directory), config=engine_config(options)))
    longest = max(settings, key=lambda setting: setting.input_length + setting.max_new_tokens)
    length = longest.input_length + longest.max_new_tokens + image_tokens
    if length > footprint.context_length:
        image = f"an image of {image_tokens} tokens, " if image_tokens else ""
        raise ConfigError(
            f"{image}--input-length {longest.input_length} and --max-new-tokens {longest.max_new_tokens} are {length} "
            f"tokens, but the model's context is {footprint.context_length}; lower one"
        )
    options["max_model_len"] = length
    return footprint


async def _measure(
    given: argparse.Namespace,
    options: dict[str, Any],
    settings: list[Setting],
    golden: list[list[int]] | None,
    images: BenchImages | None,
) -> tuple[list[Measured], str]:
    """Every batch, and what the device says it is."""
    async with AsyncLLM(**options) as llm:
        template = llm.chat_template if given.mode == "chat" else None
        processor = images.processor if images else None
        batches = [
            (each, make_prompts(llm.tokenizer, template, each.batch, each.input_length, given.seed, processor))
            for each in settings
        ]
        measured = []
        for setting, prompts in batches:
            asked, passes, times = await _passes(llm, setting, prompts, images)
            memory, quality = peak_worker_memory(), None
            if given.quality_check or golden is not None:
                quality = await _quality(llm, asked, passes[1], golden)
            measured.append(Measured(setting, [len(each.ids) for each in asked], passes, memory, quality, times))
        return measured, llm.engine.info.device


async def _passes(
    llm: AsyncLLM, setting: Setting, prompts: list[list[int]], images: BenchImages | None
) -> tuple[list[ImagePrompt], tuple[Pass, Pass], ImageTimes | None]:
    """The measured prompts, the warm-up and the measured pass, and what images took."""
    if images is None:
        asked = [ImagePrompt(prompt) for prompt in prompts]
        warmup, run = [await run_pass(llm, asked, setting.max_new_tokens, uuid4().hex) for _ in range(2)]
        return asked, (warmup, run), None
    assert llm.images is not None
    first, asked = [await images.shown(prompts, llm.images, llm.tokenizer) for _ in range(2)]
    texts = make_prompts(llm.tokenizer, None, setting.batch, max(len(each.ids) for each in asked), 0)
    warmup = await run_pass(llm, first, setting.max_new_tokens, uuid4().hex)
    salt = uuid4().hex
    run = await run_pass(llm, asked, setting.max_new_tokens, salt)
    again = await run_pass(llm, asked, 1, salt)
    text = await run_pass(llm, [ImagePrompt(each) for each in texts], 1, uuid4().hex)
    return asked, (warmup, run), ImageTimes.of(images.tokens, run, text, again)


async def _quality(llm: AsyncLLM, prompts: list[ImagePrompt], run: Pass, golden: list[list[int]] | None) -> Verdict:
    """Judge the answers up to their end tokens, which the measurement ignores."""
    ends = set(end_token_ids(llm.engine.directory, llm.tokenizer.eos_id))
    found: list[AnswerQuality] = []
    for index, (prompt, answer) in enumerate(zip(prompts, run.answers, strict=True)):
        end = next((place for place, token in enumerate(answer.token_ids) if token in ends), len(answer.token_ids))
        token_ids = answer.token_ids[:end]
        # The model's context has no room for one more token after the whole answer.
        logprobs = await logprobs_of(llm, prompt, token_ids[: len(answer.token_ids) - 1]) if token_ids else []
        expected = golden[index] if golden is not None else None
        text, question = llm.tokenizer.decode(token_ids), llm.tokenizer.decode(prompt.ids)
        found.append(judge_answer(answer.token_ids if expected else token_ids, text, question, logprobs, expected))
    return judge(found)


def _description(given: argparse.Namespace, footprint: Footprint, device: str) -> dict[str, Any]:
    return {
        "model": given.model,
        "architecture": footprint.architecture,
        "dtype": footprint.dtype,
        "quantization": footprint.quantization,
        "device": device,
        "tp_size": given.tp_size,
        "mode": given.mode,
        "seed": given.seed,
        "image_size": "x".join(map(str, given.image_size)) if given.image_size else None,
        "weight_bytes": footprint.weight_bytes,
        "kv_token_bytes": footprint.kv_token_bytes,
    }
