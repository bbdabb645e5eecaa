"""`sophserve plan`: what fits, and how fast it can be at most, by config.json alone."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from sophserve.checkpoint import resolve_config
from sophserve.config import EngineConfig, parse_size, read_count
from sophserve.errors import ConfigError
from sophserve.measure.footprint import ExpertLayers, Footprint, FootprintRequest, ImageEncoding, SmallerModel, measure
from sophserve.options import CommandParser, add_engine_options, engine_config
from sophserve.table import rows_of, size


class Device(msgspec.Struct, kw_only=True):
    """A kind of device: its memory in bytes, its bandwidth in bytes a second, and its rate of 16-bit products in
    operations a second; None for what is not known. note: where these are from, if it is not the data sheet."""

    memory: int | None = None
    bandwidth: float | None = None
    rate: float | None = None
    note: str = ""


PRESETS = {
    "a100-40gb": Device(memory=40 * 2**30, bandwidth=1555e9, rate=312e12),
    "a100-80gb": Device(memory=80 * 2**30, bandwidth=2039e9, rate=312e12),
    "h100": Device(memory=80 * 2**30, bandwidth=3350e9, rate=989e12),
    "h200": Device(memory=141 * 10**9, bandwidth=4800e9, rate=989e12),
    "sg2260": Device(
        memory=128 * 2**30,
        bandwidth=546e9,
        rate=100e12,
        note="sg2260: one chip of 8 cores. Memory, bandwidth and rate are the vendor's figures, from its runtime, its "
        "compiler and its cards; nobody has measured them here.",
    ),
}
"""What data sheets say of dense 16-bit products and of memory. Sophgo publishes none."""

OPTIONS = (
    "device",
    "dtype",
    "quantization",
    "head_bits",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "kv_cache_memory",
    "encoder_cache_memory",
    "speculation",
    "speculative_model",
)
LENGTHS = (1024, 4096, 16384)


def plan(argv: Sequence[str]) -> int:
    """Print what fits."""
    given = vars(_parser().parse_args(argv))
    model = given.get("model") or given.get("model_option")
    if not model:
        raise ConfigError("give a MODEL: a directory with a config.json, or a Hub id")
    device = _device(given)
    config = engine_config({**{name: given[name] for name in OPTIONS if name in given}, "model": model})
    directory = resolve_config(model)
    search = [] if device.memory is None else [device.memory]
    smaller = config.drafting.model and str(resolve_config(config.drafting.model))
    request = FootprintRequest(
        directory=str(directory), config=config, smaller=smaller, memory=device.memory, search=search
    )
    found = measure(request)
    answer = reckon(found, config, device, given.get("lengths"))
    print(json.dumps(answer, indent=2) if given.get("json") else _text(answer, found, config, device))
    return 0


def reckon(
    found: Footprint, config: EngineConfig, device: Device, lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """Everything that the command prints, as it stands under --json."""
    tokens = found.num_blocks * config.block_size
    longest = min(found.max_model_len, tokens)
    lengths = lengths or [*(each for each in LENGTHS if each < longest), longest or found.max_model_len]
    rows = []
    for length in sorted(set(lengths)):
        blocks = -(-length // config.block_size)
        fits = min(found.num_blocks // blocks, config.max_num_seqs) if length <= longest else 0
        row: dict[str, Any] = {"length": length, "sequences": fits}
        for name, batch in (("one", 1), ("all", fits)):
            time = decode_seconds(found, device, batch, length) if batch and fits else None
            row[f"decode_{name}"] = batch / time if time else None
        row["prefill"] = None
        if device.rate and fits:
            row["prefill"] = length * device.rate / found.prefill_flops(length)
        rows.append(row)
    return {
        "model": config.model,
        **msgspec.to_builtins(found),
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "kv_cache_bytes": tokens * found.kv_token_bytes,
        "kv_cache_tokens": tokens,
        "longest_context": longest,
        "bandwidth": device.bandwidth,
        "rate": device.rate,
        "note": device.note,
        "lengths": rows,
    }


def decode_seconds(found: Footprint, device: Device, batch: int, length: int) -> float | None:
    """The least time of a step of `batch` decoding sequences of `length` tokens; None if nothing bounds it."""
    times = []
    if device.bandwidth:
        times.append(found.decode_bytes(batch, length) / device.bandwidth)
    if device.rate:
        times.append(found.decode_flops(batch, length) / device.rate)
    return max(times, default=None)


def parse_rate(name: str, text: str, unit: str) -> float:
    """A number a second, such as 546GB/s or 128TFLOP/s, of `unit`. Raises ConfigError."""
    match = re.fullmatch(rf"([\d.]+(?:e\d+)?)\s*([KMGTP]?)(?:{unit})?(?:/?s)?", text.strip(), re.IGNORECASE)
    try:
        value = float(match[1]) * 1000.0 ** " KMGTP".index(match[2].upper() or " ") if match else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"cannot read {name} {text!r}; write it like 500G{unit}/s or 100T{unit}/s")
    return value


def _parser() -> CommandParser:
    parser = CommandParser("plan", "Say what of a model fits on a device, by its config.json alone.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a directory with a config.json, or a Hub id")
    parser.add_argument("--model", dest="model_option", metavar="MODEL", help="the same")
    add_engine_options(parser, OPTIONS)
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="memory of each device, such as 128GiB (default: this machine's)"
    )
    parser.add_argument(
        "--device-preset", metavar="NAME", help=f"memory, bandwidth and rate of a known device: {', '.join(PRESETS)}"
    )
    parser.add_argument("--bandwidth", metavar="RATE", help="of each device's memory, such as 500GB/s")
    parser.add_argument("--rate", metavar="RATE", help="of each device's products, such as 100TFLOP/s")
    parser.add_argument("--lengths", metavar="N,N,...", type=_lengths, help="tokens of a sequence, prompt and answer")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser


def _lengths(text: str) -> list[int]:
    try:
        values = [read_count(each) for each in text.split(",")]
    except ConfigError:
        values = [0]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of tokens with commas between them, got {text!r}")
    return values


def _device(given: dict[str, Any]) -> Device:
    preset = given.get("device_preset")
    if preset is not None and preset not in PRESETS:
        raise ConfigError(
            f"there is no preset {preset!r}, only {', '.join(PRESETS)}; for another device give "
            "--device-memory, --bandwidth and --rate as its data sheet has them"
        )
    device = Device() if preset is None else msgspec.structs.replace(PRESETS[preset])
    if "device_memory" in given:
        device.memory = parse_size(given["device_memory"])
    if "bandwidth" in given:
        device.bandwidth = parse_rate("--bandwidth", given["bandwidth"], "B")
    if "rate" in given:
        device.rate = parse_rate("--rate", given["rate"], "FLOP")
    return device


def _text(answer: dict[str, Any], found: Footprint, config: EngineConfig, device: Device) -> str:
    kind = f"{found.dtype} with {found.quantization} weights" if found.quantization else found.dtype
    share = "as --kv-cache-memory says" if config.kv_cache_bytes else "the server's share of what the weights leave"
    most = " at most" if found.layouts else ""
    lines = [
        f"model            {found.architecture}, {kind}, packed for {found.layout}",
        f"devices          {config.world_size} with {size(found.device_memory)} each",
        f"parameters       {_parameters(found)}",
        *(_experts(each) for each in found.experts),
        *([_encoding(found.encoding)] if found.encoding else []),
        *([_smaller(found.smaller)] if found.smaller else []),
        *_stages(found, config),
        f"weights          {size(found.weight_bytes)} a device{most}, {found.weight_bytes} bytes",
        f"KV cache         {size(answer['kv_cache_bytes'])} a device ({share}): {answer['kv_cache_tokens']} tokens of "
        f"{size(found.kv_token_bytes)}",
        f"longest context  {answer['longest_context']} tokens; the model's is {found.context_length}",
    ]
    if problem := _problem(answer, found, config):
        lines.append(problem)
    for memory, count in found.fewest_devices.items():
        lines.append(
            f"fewest devices   {count} with {size(memory)} each for the weights and one sequence of "
            f"{found.max_model_len} tokens"
        )
    lines += _layouts(found, config)
    titles = ["length", "sequences", "decode, one", "decode, all", "prefill"]
    cells = [
        [
            str(row["length"]),
            str(row["sequences"]),
            *(_per_second(row[name]) for name in ("decode_one", "decode_all", "prefill")),
        ]
        for row in answer["lengths"]
    ]
    lines += ["", *rows_of(titles, cells)]
    if device.bandwidth or device.rate:
        lines.append("Decode and prefill: tokens a second, the most that bandwidth and rate of the devices allow.")
    else:
        lines.append("Give --bandwidth and --rate, or a --device-preset, for limits of decode and prefill.")
    if device.note:
        lines.append(device.note)
    return "\n".join(lines)


def _stages(found: Footprint, config: EngineConfig) -> list[str]:
    first, lines = 0, []
    asked = [each for each in found.layouts if each.tensor_parallel_size == config.tensor_parallel_size]
    for stage in (stage for each in asked for stage in each.stages):
        layers = f"layers {first} to {first + stage.layers - 1}"
        takes = f"{stage.weight_bytes} bytes of weights a device, {stage.kv_token_bytes} for a token in the KV cache"
        lines.append(f"{'' if first else 'stages':<17}{layers}: {takes}")
        first += stage.layers
    return lines


def _layouts(found: Footprint, config: EngineConfig) -> list[str]:
    """Which ways of splitting the model over as many devices fit."""
    if not found.layouts:
        return []
    rows = []
    for each in found.layouts:
        tokens = each.num_blocks * config.block_size
        fits = "yes" if tokens >= found.max_model_len else "no"
        sizes = [each.tensor_parallel_size, each.pipeline_parallel_size, each.weight_bytes, each.kv_token_bytes, tokens]
        rows.append([*map(str, sizes), fits])
    return ["", *rows_of(["-tp", "-pp", "weights", "KV of a token", "tokens", "fits"], rows)]


def _parameters(found: Footprint) -> str:
    fewer = found.experts or found.encoding
    active = f", of which a token is multiplied with {_number(found.active_parameters)}" if fewer else ""
    return f"{_number(found.parameters)}{active}"


def _number(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _experts(layers: ExpertLayers) -> str:
    held = f"{layers.held} of the {layers.intermediate_size} inner features of each are on a device"
    return f"experts          {layers.count} in {layers.layers} layers, {layers.top_k} for a token; {held}"


def _encoding(encoding: ImageEncoding) -> str:
    cache = f"{size(encoding.cache_tokens * encoding.token_bytes)} for {encoding.cache_tokens} tokens of images"
    weights = f"{_number(encoding.parameters)} parameters, {size(encoding.weight_bytes)} of the weights of a device"
    return f"image encoder    {weights}; its cache takes up to {cache}"


def _smaller(model: SmallerModel) -> str:
    weights = f"{_number(model.parameters)} parameters, {size(model.weight_bytes)} of the weights of the first device"
    return f"guessing model   {weights}; {size(model.kv_token_bytes)} of its KV cache for each token"


def _problem(answer: dict[str, Any], found: Footprint, config: EngineConfig) -> str | None:
    if found.weight_bytes >= found.device_memory:
        more = "--tensor-parallel-size or --pipeline-parallel-size"
        return f"does not fit     the weights alone exceed a device's memory; raise {more}, or quantize"
    block_bytes = found.kv_token_bytes * config.block_size
    if config.kv_cache_bytes and config.kv_cache_bytes < block_bytes:
        return f"does not fit     --kv-cache-memory is less than one block of {size(block_bytes)}; raise it"
    if not found.num_blocks and config.kv_cache_bytes:
        return "does not fit     the weights leave less than --kv-cache-memory; lower it"
    if answer["longest_context"] < found.max_model_len:
        shorter = f"--max-model-len {answer['longest_context']} or " if answer["longest_context"] else ""
        return f"does not fit     a sequence of {found.max_model_len} tokens; a server needs {shorter}more memory"
    return None


def _per_second(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
