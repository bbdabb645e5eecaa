"""Measures a model without its weights: `python -m sophserve.measure.footprint_process`, with a FootprintRequest on
standard input.

The model is built and loaded by the very code that serves it, on torch's meta device, whose tensors have shapes but no
values. What a checkpoint holds is what its config.json lets expect.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor

from device.interface import Device, PackedWeight
from sophserve.checkpoint import quantization_config, read_config
from sophserve.errors import SophserveError
from sophserve.fit import MOST_RANKS, CannotSplit, resolve_max_model_len
from sophserve.measure.footprint import Attention, Footprint, FootprintRequest
from sophserve.model.config import resolve_dtype
from sophserve.model.context import ModelContext
from sophserve.model.decoder import CausalLM
from sophserve.model.devices import open_device
from sophserve.model.kv_memory import KV_SHARE, block_count, cached_layers, token_bytes
from sophserve.model.layers import PackedModule
from sophserve.model.loading import (
    RankOf,
    Wanted,
    build_model,
    check_operators,
    divides,
    find_architecture,
    load_weights,
    refuse_model,
)
from sophserve.model.quantization import Scheme, find_scheme, no_values
from sophserve.model.weights import StoredTensor

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
}


class ShapesOf:
    """Stands for a device, to load weights that have no values."""

    torch_device = torch.device("meta")
    layout = ""

    def __init__(self, device: Device) -> None:
        self.name = device.name
        self.operators = device.operators
        self.pack = device.pack
        self.shard = device.shard


class AlikeWeights:
    """Packs one of all weights of the same sizes and formats: without values they are the same."""

    def __init__(self, model: CausalLM) -> None:
        self._modules = dict(model.named_modules())
        self._packed: dict[str, PackedWeight] = {}

    def _kind(self, path: str) -> str:
        module = self._modules[path]
        assert isinstance(module, PackedModule)
        return repr((module.parameters(), [type(each) for each in module.formats.values()]))

    def get(self, path: str) -> PackedWeight | None:
        """That of a module like this one."""
        return self._packed.get(self._kind(path))

    def keep(self, path: str, weight: PackedWeight) -> None:
        """For those like this one."""
        self._packed[self._kind(path)] = weight

    def commit(self) -> None:
        """Nothing is to be done."""


def footprint(request: FootprintRequest) -> Footprint:
    """Measure a model. Raises SophserveError as a server would."""
    config, directory = request.config, Path(request.directory)
    settings = read_config(directory)
    model_class = find_architecture(settings)
    longest = model_class.max_model_len(settings)
    max_model_len = resolve_max_model_len(config, longest)
    device = open_device(config.device)
    check_operators(model_class, device)
    context = ModelContext(
        cast(Device, ShapesOf(device)),
        RankOf(config.tensor_parallel_size),
        resolve_dtype(settings, config.dtype),
        max_positions=1,
    )

    def load(ranks: int) -> CausalLM:
        of_ranks = replace(context, communicator=RankOf(ranks))
        return _load(directory, settings, model_class, of_ranks, config.quantization)

    try:
        model = load(config.tensor_parallel_size)
    except CannotSplit as error:
        refuse_model(error, model_class, settings, context)
    memory, shared = request.memory, 1
    if memory is None:
        memory = device.memory()[0]
        shared = config.tensor_parallel_size if device.torch_device.type == "cpu" else 1
    weights = model.nbytes
    left = max(0, memory - weights * shared)
    budget = config.kv_cache_bytes or int(left * KV_SHARE) // shared
    block_bytes = token_bytes(model) * config.block_size
    needs = {}
    if request.search:
        tokens = -(-max_model_len // config.block_size) * config.block_size
        # Other numbers of devices are not built into machines.
        ranks = (2**power for power in range(MOST_RANKS.bit_length()))
        possible = (count for count in ranks if divides(model_class, settings, context, count))
        needs = _needs(load, possible, memory, tokens)
    given = quantization_config(directory, settings)
    untied = 0 if model.tied else model.embedding.nbytes
    return Footprint(
        architecture=model_class.__name__,
        dtype=str(context.dtype).removeprefix("torch."),
        quantization=given["quant_method"] if given else config.quantization,
        layout=device.name,
        context_length=longest,
        max_model_len=max_model_len,
        weight_bytes=weights,
        step_bytes=weights - untied,
        kv_token_bytes=token_bytes(model),
        kv_budget=budget,
        num_blocks=block_count(budget, block_bytes, config, max_model_len) if budget <= left else 0,
        product_flops=model.token_flops,
        head_flops=model.head.token_flops,
        attention=_attention(model),
        device_memory=memory,
        needs=needs,
    )


def _load(
    directory: Path, settings: dict[str, Any], model_class: type[CausalLM], context: ModelContext, asked: str | None
) -> CausalLM:
    """The model as it would be loaded, without values."""
    scheme = find_scheme(directory, settings, asked)
    stored_scheme = scheme if quantization_config(directory, settings) is not None else None
    model = build_model(model_class, settings, context)
    tensors = _expected_tensors(model, stored_scheme, resolve_dtype(settings, "auto"))
    stored = {
        name: StoredTensor(name, directory / "config.json", tuple(tensor.shape), _NAMES[tensor.dtype])
        for name, tensor in tensors.items()
    }

    def read(wanted: Wanted) -> dict[str, Tensor]:
        return {key: tensors[place.name][part or ...] for key, (place, part) in wanted.items()}

    load_weights(model, directory, stored, read, scheme, AlikeWeights(model))
    return model


def _expected_tensors(model: CausalLM, scheme: Scheme | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a checkpoint of the model holds, by the tensors' names."""
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for parameter, spec in module.parameters().items():
            layer, _, last = model.tensor_of(f"{path}.{parameter}").rpartition(".")
            expected: dict[str, Tensor] | None = None
            is_packed = isinstance(module, PackedModule) and last == "weight"
            if scheme and is_packed and f"{path}.{parameter}" not in model.tied.values():
                rows, columns = spec.shape
                expected = scheme.expected(layer, (rows, columns), dtype)
            for name, tensor in (expected or {last: no_values(spec.shape, dtype)}).items():
                tensors[f"{layer}.{name}"] = tensor
    return tensors


def _needs(load: Callable[[int], CausalLM], possible: Iterable[int], memory: int, tokens: int) -> dict[int, int]:
    """Bytes of the weights and of a sequence of so many tokens, by the number of ranks, up to one that has room."""
    found: dict[int, int] = {}
    for ranks in possible:
        try:
            model = load(ranks)
        except CannotSplit:
            continue
        found[ranks] = model.nbytes + tokens * token_bytes(model)
        if found[ranks] <= memory:
            break
    return found


def _attention(model: CausalLM) -> list[Attention]:
    """Its layers by their window."""
    found: dict[int | None, Attention] = {}
    for layer in cached_layers(model):
        each = found.setdefault(layer.window, Attention(window=layer.window, token_bytes=0, pair_flops=0))
        each.token_bytes += layer.cache.token_bytes
        each.pair_flops += layer.pair_flops
    return list(found.values())


def main() -> int:
    """Answer with a Footprint on standard output, or, with exit code 2, with what is wrong."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=FootprintRequest)
    try:
        sys.stdout.buffer.write(msgspec.json.encode(footprint(request)))
    except SophserveError as error:
        sys.stdout.write(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
