"""Measures a model without its weights: `python -m sophserve.measure.footprint_process`, with a FootprintRequest on
standard input.

The model is built and loaded by the very code that serves it, on torch's meta device, whose tensors have shapes but no
values. What a checkpoint holds is what its config.json lets expect.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Container, Hashable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from msgspec.structs import replace as replace_options
from torch import Tensor

from device.interface import Device, PackedWeight
from sophserve.checkpoint import quantization_config, read_config
from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError, ConfigError, SophserveError
from sophserve.fit import MOST_RANKS, CannotSplit, check_stages, resolve_max_model_len
from sophserve.measure.footprint import (
    Attention,
    ExpertLayers,
    Footprint,
    FootprintRequest,
    ImageEncoding,
    Layout,
    SmallerModel,
)
from sophserve.measure.layouts import cut, layout
from sophserve.model.config import resolve_dtype
from sophserve.model.context import ModelContext, resolve_activation_bits
from sophserve.model.decoder import Absent, CausalLM
from sophserve.model.devices import open_device
from sophserve.model.eagle3 import find_smaller
from sophserve.model.experts import Experts
from sophserve.model.kv_memory import cached_layers, token_bytes
from sophserve.model.layers import PackedModule
from sophserve.model.loading import (
    RankOf,
    Wanted,
    check_operators,
    find_architecture,
    load_weights,
    refuse_model,
)
from sophserve.model.module import Module
from sophserve.model.quantization import Scheme, find_scheme, no_values
from sophserve.model.vision import VisionLanguageModel
from sophserve.model.weights import StoredTensor, find_tensors

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int8: "I8",
}


# Made-up numbers before they repeat, a prime so that rows differ.
_PATTERN = 1048583
# Of an image that stands for others.
_PLACEHOLDERS = 1024


class ShapesOf:
    """Stands for a device, to load weights that have no values."""

    layout = ""

    def __init__(self, device: Device) -> None:
        self.name = device.name
        self.operators = device.operators
        self.pack = device.pack
        self.shard = device.shard

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to("meta")


class Expected:
    """What a checkpoint of a model holds by its config.json: tensors without values, but for those that decide sizes.

    scheme: that of the files. dtype: that of plain tensors.
    """

    def __init__(self, model: CausalLM, scheme: Scheme | None, dtype: torch.dtype, file: Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        for path, module in model.named_modules():
            for parameter, spec in module.parameters().items():
                layer, _, last = model.tensor_of(f"{path}.{parameter}").rpartition(".")
                expected: dict[str, Tensor] | None = None
                if scheme and isinstance(module, PackedModule) and last == "weight" and len(spec.shape) == 2:
                    is_embedding = module.role in ("embedding", "tied_head")
                    ask = scheme.expected_embedding if is_embedding else scheme.expected
                    rows, columns = spec.shape
                    expected = ask(layer, (rows, columns), dtype)
                for name, tensor in (expected or {last: no_values(spec.shape, dtype)}).items():
                    self.tensors[f"{layer}.{name}"] = tensor
        self.stored = {
            name: StoredTensor(name, file, tuple(tensor.shape), _NAMES[tensor.dtype])
            for name, tensor in self.tensors.items()
        }

    def read(self, wanted: Wanted) -> dict[str, Tensor]:
        """As read_tensors does."""
        return {key: self.tensors[place.name][part or ...] for key, (place, part) in wanted.items()}


class MadeUp:
    """Random values for tensors that have none, with the sizes of numbers that a model has."""

    def __init__(self) -> None:
        self._octets = torch.randint(256, (_PATTERN,), dtype=torch.uint8)
        self._numbers = torch.randn(_PATTERN) / 50

    def values(self, name: str, like: Tensor) -> Tensor:
        """Those of a stored tensor or of a part of it; biases are 0, what else is a vector 1."""
        if like.device.type != "meta":
            return like
        if like.dim() < 2:
            return torch.full(like.shape, 0.0 if "bias" in name else 1.0).to(like.dtype)
        pattern = self._numbers.to(like.dtype).view(torch.uint8) if like.is_floating_point() else self._octets
        octets = pattern.repeat(-(-like.nbytes // len(pattern)))[: like.nbytes]
        values = octets.view(like.dtype).view(like.shape)
        return values >> 4 if like.dtype == torch.int8 else values  # such codes may be of 4 bits


class AlikeWeights:
    """Packs one of all weights that are made of the same in the same way: without values they are the same."""

    def __init__(self, model: CausalLM, tensors: Mapping[str, Tensor]) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._tensors = tensors
        self._packed: dict[Hashable, PackedWeight] = {}

    def _kind(self, path: str) -> Hashable:
        module = self._modules[path]
        assert isinstance(module, PackedModule)
        # Tensors of which the same is expected are one object.
        tensors = [
            (name, repr(spec.shard), id(self._tensors[self._model.tensor_of(f"{path}.{name}")]))
            for name, spec in module.parameters().items()
        ]
        return type(module), module.role, *tensors, *map(type, module.formats.values())

    def get(self, path: str) -> PackedWeight | None:
        """That of a module like this one."""
        return self._packed.get(self._kind(path))

    def keep(self, path: str, weight: PackedWeight) -> None:
        """For those like this one."""
        self._packed[self._kind(path)] = weight

    def commit(self) -> None:
        """Nothing is to be done."""


class Loader:
    """Loads a model without values, for any number of ranks.

    shapes: the model before it is loaded, whose parameters are plain. Raises SophserveError as a server would.
    """

    def __init__(
        self, request: FootprintRequest, find_class: Callable[..., type[CausalLM]] = find_architecture
    ) -> None:
        self.directory = Path(request.directory)
        self.smaller = _smaller(request)
        self.settings = read_config(self.directory)
        self.model_class = find_class(self.settings)
        self.device = open_device(request.config.device)
        check_operators(self.model_class, self.device)
        dtype = resolve_dtype(self.settings, request.config.dtype)
        shapes_of = cast(Device, ShapesOf(self.device))
        mtp = request.config.drafting.mtp and self.model_class.has_mtp(self.settings, _stored(self.directory))
        bits = resolve_activation_bits(request.config.activation_bits, dtype, self.device)
        context = ModelContext(shapes_of, RankOf(1), dtype, max_positions=1, activation_bits=bits, mtp=mtp)
        self._context = replace(context, head_bits=request.config.head_bits)
        self.shapes = self._build(1)
        self._loaded: dict[int, CausalLM] = {}
        self._config = request.config
        self._scheme = find_scheme(self.directory, self.settings, request.config.quantization)
        self.stored_quantization = quantization_config(self.directory, self.settings)
        scheme = None if self.stored_quantization is None else self._scheme
        stored_dtype = resolve_dtype(self.settings, "auto")
        self._kept_in = scheme, stored_dtype, self.directory / "config.json"
        self._expected = Expected(self.shapes, *self._kept_in)

    def _build(self, ranks: int) -> CausalLM:
        return self.model_class(self.settings, replace(self._context, communicator=RankOf(ranks)))

    def _load(self, ranks: int) -> CausalLM:
        if ranks not in self._loaded:
            model, expected = self._build(ranks), self._expected
            alike = AlikeWeights(model, expected.tensors)
            load_weights(model, self.directory, expected.stored, expected.read, self._scheme, alike)
            self._loaded[ranks] = model
        return self._loaded[ranks]

    def made_up(self, layers: Container[int], max_positions: int) -> CausalLM:
        """The decoder of one rank on the device itself, in which only these layers are there, with made-up weights."""
        context = replace(self._context, device=self.device, max_positions=max_positions, mtp=False)
        model = self.model_class(self.settings, context)
        model.layers = [each if index in layers else Absent() for index, each in enumerate(model.layers)]
        for name, module in list(vars(model).items()):
            if module in _encoders(model):
                setattr(model, name, Absent())
        expected, made_up = Expected(model, *self._kept_in), MadeUp()

        def read(wanted: Wanted) -> dict[str, Tensor]:
            return {key: made_up.values(wanted[key][0].name, like) for key, like in expected.read(wanted).items()}

        load_weights(model, self.directory, expected.stored, read, self._scheme)
        return model

    def load(self, ranks: int) -> CausalLM:
        """The model of rank 0 of so many."""
        try:
            return self._load(ranks)
        except CannotSplit as error:
            refuse_model(error, self.model_class, self.settings, self._context)

    def stages(self, ranks: int, count: int) -> list[range]:
        """The layers of each of so many stages, split by the bytes of their weights on each of so many ranks."""
        model = self.load(ranks)
        check_stages(self._config, layers=len(model.layers), sees=bool(_encoders(model)))
        return cut(model, count)

    def splits(self, ranks: int) -> bool:
        """Whether so many ranks can share a layer."""
        try:
            self._load(ranks)
        except CannotSplit:
            return False
        return True

    def fewest(self, memory: int, tokens: int) -> int | None:
        """How many devices at least have room for the weights and a sequence of so many tokens. Only powers of two are
        tried, as other numbers are not built into machines."""

        def need(ranks: int) -> int:
            model, smaller = self._load(ranks), self.smaller
            beside = smaller.weight_bytes + tokens * smaller.kv_token_bytes if smaller else 0
            return model.nbytes + tokens * token_bytes(model) + beside

        for ranks in (2**power for power in range(MOST_RANKS.bit_length())):
            # All ranks together hold no less than one alone.
            with suppress(CannotSplit):
                if need(1) <= ranks * memory and need(ranks) <= memory:
                    return ranks
        return None


def footprint(request: FootprintRequest, loader: Loader | None = None) -> Footprint:
    """Measure a model. loader: one of the same request, but for the number of devices. Raises SophserveError as a
    server would."""
    config = request.config
    loader = loader or Loader(request)
    longest = loader.model_class.max_model_len(loader.settings)
    max_model_len = resolve_max_model_len(config, longest)
    ranks, stages, memory = config.tensor_parallel_size, config.pipeline_parallel_size, request.memory
    check_stages(config, layers=len(loader.shapes.layers), sees=bool(_encoders(loader.shapes)))
    model, device = loader.load(ranks), loader.device

    def lay_out(tensor: int, pipeline: int) -> Layout:
        sizes = device, config, max_model_len, memory, loader.smaller
        return layout(loader.load(tensor), pipeline, *sizes)

    asked = lay_out(ranks, stages)
    weights, experts, encoding = model.nbytes, _experts(model), _encoding(model, loader.shapes, config)
    tokens = -(-max_model_len // config.block_size) * config.block_size
    fewest = {memory: count for memory in request.search if (count := loader.fewest(memory, tokens))}
    given = loader.stored_quantization
    untied = 0 if model.tied else model.embedding.nbytes
    return Footprint(
        architecture=loader.model_class.__name__,
        dtype=str(model.context.dtype).removeprefix("torch."),
        quantization=given["quant_method"] if given else config.quantization,
        layout=device.name,
        context_length=longest,
        max_model_len=max_model_len,
        parameters=_count(loader.shapes),
        active_parameters=_active(loader.shapes),
        weight_bytes=asked.weight_bytes,
        step_bytes=weights
        - untied
        - sum(each.weight_bytes for each in experts)
        - (encoding.weight_bytes if encoding else 0),
        kv_token_bytes=asked.kv_token_bytes,
        kv_budget=asked.kv_budget,
        num_blocks=asked.num_blocks,
        product_flops=model.token_flops,
        head_flops=model.head.token_flops,
        attention=_attention(model),
        experts=experts,
        encoding=encoding,
        smaller=loader.smaller,
        layouts=_layouts(loader, config.world_size, lay_out) if stages > 1 else [],
        device_memory=device.memory()[0] if memory is None else memory,
        fewest_devices=fewest,
    )


def _smaller(request: FootprintRequest) -> SmallerModel | None:
    """What the model takes that guesses. Raises ConfigError."""
    if request.smaller is None:
        return None
    alone: dict[str, Any] = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "quantization": None}
    no_guesses: dict[str, Any] = {"speculation": "off", "speculative_model": None, "speculative_config": {}}
    config = replace_options(request.config, **alone, **no_guesses)
    try:
        loader = Loader(FootprintRequest(directory=request.smaller, config=config), find_smaller)
        model = loader.load(1)
    except SophserveError as error:
        raise ConfigError(f"--speculative-model: {error}") from error
    return SmallerModel(_count(loader.shapes), model.nbytes, token_bytes(model))


def _layouts(loader: Loader, devices: int, lay_out: Callable[[int, int], Layout]) -> list[Layout]:
    """All that the model can be split in."""
    found = []
    for ranks in range(devices, 0, -1):
        stages, rest = divmod(devices, ranks)
        if not rest and stages <= len(loader.shapes.layers) and loader.splits(ranks):
            found.append(lay_out(ranks, stages))
    return found


def _stored(directory: Path) -> Collection[str] | None:
    """The names of a checkpoint's tensors; None where only its config.json is there."""
    try:
        return find_tensors(directory) or None
    except CheckpointError:
        return None


def _count(*modules: Module) -> int:
    """Numbers of modules that are not loaded, and all below them."""
    below = (each for module in modules for each in module.modules())
    return sum(prod(spec.shape) for module in below for spec in module.parameters().values())


def _active(model: CausalLM) -> int:
    """Those that a token is multiplied with: neither the embedding nor the experts that it does not go through."""
    experts = (module for module in model.modules() if isinstance(module, Experts))
    unused = sum(_count(each) * (each.count - each.top_k) // each.count for each in experts)
    return _count(model) - _count(model.embedding) - _count(*_encoders(model)) - unused


def _encoders(model: CausalLM) -> list[Module]:
    """What encodes images: all that is no part of a decoder."""
    decoder = {id(each) for each in (model.embedding, *model.layers, model.mtp, model.norm, model.head)}
    return [child for _, child in model.children() if id(child) not in decoder]


def _encoding(model: CausalLM, shapes: CausalLM, config: EngineConfig) -> ImageEncoding | None:
    if not isinstance(model, VisionLanguageModel):
        return None
    token_bytes = model.config.hidden_size * model.context.dtype.itemsize
    return ImageEncoding(
        _count(*_encoders(shapes)),
        sum(each.nbytes for each in _encoders(model)),
        model.encoder_flops(_PLACEHOLDERS) // _PLACEHOLDERS,
        token_bytes,
        config.encoder_cache_bytes // token_bytes,
    )


def _experts(model: CausalLM) -> list[ExpertLayers]:
    """Its layers with experts by their kind."""
    found: dict[tuple[int, ...], ExpertLayers] = {}
    for module in model.modules():
        if isinstance(module, Experts):
            kind = module.count, module.top_k, module.intermediate_size, module.held
            each = found.setdefault(kind, ExpertLayers(0, *kind, weight_bytes=0))
            each.layers += 1
            each.weight_bytes += module.weight.nbytes
    return list(found.values())


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
