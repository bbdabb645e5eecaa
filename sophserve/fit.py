"""What config.json and the options decide together. Free of torch: the server asks before it starts a worker, the
worker asks once it knows the model itself, and both say the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NoReturn

from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError, ConfigError
from sophserve.plugins import left_out
from sophserve.table import size

MOST_RANKS = 64
"""Sizes of a tensor-parallel group up to this one are tried to advise the user."""

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""What a model can be run in, with the bytes of a number."""


class CannotSplit(ConfigError):
    """A model does not divide between the ranks of the tensor-parallel group. things: what it is that does not. fits:
    whether these divide between another number of ranks, where the sizes in config.json do not tell."""

    def __init__(self, things: str, ranks: int, fits: Callable[[int], bool] = lambda ranks: True) -> None:
        super().__init__(f"{things} cannot be split between {ranks} ranks")
        self.fits = fits


def heads_in_words(count: int, channels: int) -> str:
    """The heads of a projection, for CannotSplit."""
    return f"{count} attention heads of {channels} channels"


def columns_in_words(count: int) -> str:
    """The outputs of a projection, for CannotSplit."""
    return f"{count} columns of a projection"


def check_groups(size: int, group: int, ranks: int) -> None:
    """Raise CannotSplit if a rank's part of an expert with `size` inner features would be neither whole groups, of so
    many that are quantized together, nor lie within one."""

    def fits(ranks: int) -> bool:
        part = size // ranks
        return ranks == 1 or (size % ranks == 0 and (part % group == 0 or group % part == 0))

    if not fits(ranks):
        raise CannotSplit(f"experts of {size} columns, which are quantized in groups of {group},", ranks, fits)


def vocabulary_in_words(size: int) -> str:
    """The rows of embedding and head, for CannotSplit."""
    return f"a vocabulary of {size} tokens"


def has_experts(layer: int, experts: int, sparse_step: int, dense_layers: Container[int]) -> bool:
    """Whether a layer of a model with so many experts has some, by decoder_sparse_step and mlp_only_layers."""
    return experts > 0 and layer not in dense_layers and (layer + 1) % sparse_step == 0


def refuse_split(error: CannotSplit, possible: Iterable[int]) -> NoReturn:
    """Raise ConfigError: what cannot be split, and the sizes of a group that can be chosen."""
    sizes = ", ".join(str(ranks) for ranks in possible)
    raise ConfigError(f"{error}; --tensor-parallel-size can be {sizes} for this model", help="split") from None


def check_stages(config: EngineConfig, *, layers: int | None = None, sees: bool = False) -> None:
    """Raise ConfigError for stages that a model cannot be split into. layers: how many it has, if that is known. sees:
    whether it takes images."""
    stages = config.pipeline_parallel_size
    if stages > 1 and sees:
        raise ConfigError("models that see images have one stage; leave out --pipeline-parallel-size")
    if layers is not None and stages > layers:
        raise ConfigError(
            f"--pipeline-parallel-size is {stages}, but the model has {layers} layers, of which each stage needs one; "
            f"lower it to at most {layers}"
        )


def split_layers(sizes: Sequence[int], first: int, last: int, stages: int) -> list[range]:
    """Layers of these sizes in so many stages, each of neighbours, so that the largest stage is as small as can be.
    first, last: sizes of what the first and the last stage have beside their layers."""
    count = len(sizes)
    ends = [0, *accumulate(sizes)]

    def held(stage: int, start: int, stop: int) -> int:
        return ends[stop] - ends[start] + (first if stage == 0 else 0) + (last if stage == stages - 1 else 0)

    # By where they end, the best stages so far: the largest, the sum of the squares, and where each begins.
    best: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [])}
    for stage in range(stages):
        left = stages - 1 - stage
        stops = range(stage + 1, count - left + 1) if left else [count]
        best = {
            stop: min(
                (max(largest, each := held(stage, start, stop)), squares + each * each, [*starts, start])
                for start, (largest, squares, starts) in best.items()
                if start < stop
            )
            for stop in stops
        }
    return [range(start, stop) for start, stop in pairwise([*best[count][-1], count])]


def check_device(name: str, known: Iterable[str]) -> None:
    """Raise ConfigError for a device that no plugin provides."""
    if name not in known:
        problem = f"there is no device {name!r}; --device takes auto or one of: {', '.join(known)}{left_out()}"
        raise ConfigError(problem, help="no-device")


def device_index(rank: int) -> int:
    """The number of a rank's device: CHIP_MAP in the environment lists them. Raises ConfigError."""
    chip_map = os.environ.get("CHIP_MAP")
    if not chip_map:
        return rank
    try:
        return [int(entry) for entry in chip_map.split(",")][rank]
    except (ValueError, IndexError):
        raise ConfigError(
            f"the environment variable CHIP_MAP is {chip_map!r}; it must list at least {rank + 1} device numbers "
            "with commas between them, one for each rank"
        ) from None


def choose_architecture(config: Mapping[str, Any], known: Iterable[str]) -> str:
    """The first of config.json's `architectures` that a plugin registered. Raises CheckpointError."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise CheckpointError("config.json has no architectures, so the model's class is unknown")
    for name in names:
        if name in known:
            return str(name)
    raise CheckpointError(
        f"{names[0]} is not a supported architecture; supported: {', '.join(known) or 'none'}; "
        f"a plugin can add another{left_out()}",
        help="architecture",
    )


def is_eagle3(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is an EAGLE-3 head, in the layout of the authors or of the library speculators."""
    names = config.get("architectures")
    named = isinstance(names, list) and any("eagle3" in str(name).lower() for name in names)
    return named or config.get("speculators_model_type") == "eagle3"


def dtype_name(config: Mapping[str, Any], dtype: str) -> str:
    """The option's dtype; with "auto" that of config.json, or float32 where it names none. Raises CheckpointError."""
    name = dtype if dtype != "auto" else config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(
            f"config.json's dtype {name!r} cannot be run; choose one with --dtype: {', '.join(DTYPES)}"
        )
    return name


def resolve_max_model_len(config: EngineConfig, longest: int) -> int:
    """The longest sequence that is served of a model whose context is `longest`. Raises ConfigError."""
    wanted = config.max_model_len or longest
    if wanted > longest:
        raise ConfigError(f"--max-model-len is {wanted}, but the model's context is {longest}; lower it")
    if not config.enable_chunked_prefill and wanted > config.max_num_batched_tokens:
        raise ConfigError(
            f"without chunked prefill a prompt must fit in one step: raise --max-num-batched-tokens "
            f"({config.max_num_batched_tokens}) to the context of {wanted}, or lower --max-model-len",
            help="chunked-prefill",
        )
    return wanted


def stored_method(given: Mapping[str, Any], asked: str | None, known: Iterable[str]) -> str:
    """The method of a checkpoint with this quantization config. Raises CheckpointError for one that no plugin reads,
    ConfigError where another is asked for."""
    method = str(given.get("quant_method", "unknown")).lower()
    if method not in known:
        raise CheckpointError(
            f"the checkpoint is quantized with {method!r}, which is not supported; supported: "
            f"{', '.join(known) or 'none'}{left_out()}",
            help="quantization",
        )
    if asked is not None and asked != method:
        raise ConfigError(f"the checkpoint is quantized with {method!r} already; leave out --quantization {asked}")
    return method


def check_quantizes(asked: str, able: Iterable[str]) -> None:
    """Raise ConfigError if a plain checkpoint cannot be quantized with `asked`. able: the methods that can."""
    if asked not in able:
        raise ConfigError(
            f"--quantization {asked} cannot quantize a plain checkpoint; use one of {', '.join(able) or 'none'}"
        )


def check_kv_room(budget: int, block_bytes: int, num_blocks: int, config: EngineConfig, max_model_len: int) -> None:
    """Raise ConfigError if one sequence does not fit in so many KV blocks. budget: bytes that they may take."""
    needed = -(-max_model_len // config.block_size)
    if num_blocks >= needed:
        return
    sequence_bytes = size(needed * block_bytes)
    if not num_blocks:
        given = config.kv_cache_memory.strip()
        if config.kv_cache_bytes is None:
            problem, advice = (
                f"the KV cache may take {size(budget)}",
                "free memory of the device, or quantize or split the model",
            )
        else:
            problem = f"--kv-cache-memory is {budget} bytes"
            advice = f"did you mean {given}GiB?" if given.isdecimal() and int(given) < 1024 else "raise it"
        blocks = f"less than one block of {size(block_bytes)} ({config.block_size} tokens)"
        whole = f"one sequence of {max_model_len} tokens takes {sequence_bytes}"
        raise ConfigError(f"{problem}, {blocks}, and {whole}; {advice}", help="kv-block")
    tokens = num_blocks * config.block_size
    raise ConfigError(
        f"the KV cache may take {size(budget)}, room for {tokens} tokens, but one sequence of {max_model_len} tokens "
        f"takes {sequence_bytes}; lower --max-model-len to at most {tokens} or raise --kv-cache-memory",
        help="kv-cache",
    )
