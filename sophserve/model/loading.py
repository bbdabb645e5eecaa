"""From a checkpoint's directory to a model that can run."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from device.collectives.interface import SingleRank
from device.interface import Device, UnsupportedOperator
from sophserve import fit
from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.errors import CheckpointError, ConfigError
from sophserve.fit import MOST_RANKS, CannotSplit, choose_architecture, refuse_split
from sophserve.model.config import unknown_keys
from sophserve.model.context import ModelContext
from sophserve.model.decoder import CausalLM
from sophserve.model.experts import Experts
from sophserve.model.layers import PackedModule
from sophserve.model.module import Module, ParameterSpec
from sophserve.model.packed_weights import PackedWeights, WeightCache
from sophserve.model.quantization import Scheme, find_scheme, is_dense
from sophserve.model.vision import Normalization, VisionLanguageModel
from sophserve.model.weights import StoredTensor, find_tensors, listed, read_tensors, unstack
from sophserve.plugins import architectures

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Wanted = dict[str, tuple[StoredTensor, tuple[slice, ...]]]
Read = Callable[[Wanted], dict[str, Tensor]]
"""From parts of stored tensors to tensors, by the same keys; see read_tensors."""

# What checkpoints carry along and no model here makes use of: tables that it computes itself; the scales of quantized
# activations and KV caches, under every name that exporters gave them; the heads of reward and value models.
_HARMLESS = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
    r"|\.([qkv]|kv|kv_cache|prob|output|prob_output)_(scale|zero_point)$"
    r"|^(v_head|value_head)\."
)


def find_architecture(config: dict[str, Any]) -> type[CausalLM]:
    """The model class that a plugin registered for config.json's `architectures`. Raises CheckpointError."""
    supported = architectures()
    model_class: type[CausalLM] = supported[choose_architecture(config, supported)].value
    return model_class


def load_model(
    directory: Path,
    context: ModelContext,
    on_progress: Progress | None = None,
    *,
    model_class: type[CausalLM] | None = None,
    quantization: str | None = None,
    cache_dir: str | None = None,
    needs_mtp: bool = False,
) -> CausalLM:
    """Make the model of a checkpoint and load this rank's weights, converted to the context's dtype.

    on_progress receives (bytes done, bytes in all), counted in the checkpoint's files. model_class: by default the one
    that a plugin registered. quantization: a method to quantize a plain checkpoint with. cache_dir: where to
    keep what was packed of a quantized one, by default beside the checkpoint. needs_mtp: whether there must be a layer
    that predicts a further token if the context asks for it. Raises ConfigError or CheckpointError.
    """
    config = read_config(directory)
    model_class = model_class or find_architecture(config)
    check_operators(model_class, context.device)
    scheme = find_scheme(directory, config, quantization)
    unknown = unknown_keys(model_class.config_class, config)
    if unknown:
        log.warning("config.json has keys that are not known here and are ignored: %s", ", ".join(unknown))
    stored = find_tensors(directory)
    config, generates = _with_its_head(model_class, config, stored)
    has_mtp = context.mtp and generates and model_class.has_mtp(config, stored)
    if needs_mtp and not has_mtp:
        raise ConfigError(
            f"--speculation mtp needs a layer that predicts further tokens, which {directory} does not hold; "
            "leave the option out, or give --speculation lookup"
        )
    is_last = context.layers is None or context.layers.stop == config["num_hidden_layers"]
    context = replace(context, mtp=has_mtp and is_last)
    model = build_model(model_class, config, context)
    model.generates = generates
    if isinstance(model, VisionLanguageModel):
        model.normalization = Normalization.read(read_preprocessor_config(directory))
    source = directory, stored, read_tensors
    try:
        if scheme is None and context.head_bits == 16:
            load_weights(model, *source, on_progress=on_progress)
            return model
        done = quantization or ("stored" if scheme else "plain")
        done += "" if context.head_bits == 16 else f"-head{context.head_bits}"
        done += "-mtp" if context.mtp else ""
        with PackedWeights(directory, cache_dir, context, done) as cache:
            load_weights(model, *source, scheme, cache, on_progress)
        if context.activation_bits == 8 and model.rounds_rows:
            log.info(
                "activations are rounded to int8 where they meet weights of whole numbers; "
                "--activation-bits 16 does not"
            )
    except CannotSplit as error:
        refuse_model(error, model_class, config, context)
    except UnsupportedOperator as error:
        raise ConfigError(f"{error}; or choose another --device") from None
    return model


def _with_its_head(
    model_class: type[CausalLM], config: dict[str, Any], stored: dict[str, StoredTensor]
) -> tuple[dict[str, Any], bool]:
    """The config, which says of the head what the files hold, and whether the model has one."""
    places: dict[tuple[str | None, str], StoredTensor] = {}
    for name, tensor in stored.items():
        layer, _, last = name.rpartition(".")
        places[model_class.checkpoint_names.get(layer), last] = tensor
    has_head = any(place == "head" for place, _ in places)
    if not config.get("tie_word_embeddings"):
        if has_head:
            return config, True
        # Then there is nothing to read for it, and what is tied takes no room.
        log.warning("the files hold no head: the model makes embeddings, and generates nothing")
        return config | {"tie_word_embeddings": True}, False
    head, embedding = (places.get((part, "weight")) for part in ("head", "embedding"))
    # They differ after training that did not keep them tied.
    if has_head and embedding is not None and (head is None or _differ(head, embedding)):
        log.warning("config.json ties the head to the embedding, but the files hold another head, which is used")
        config = config | {"tie_word_embeddings": False}
    return config, True


def _differ(first: StoredTensor, second: StoredTensor) -> bool:
    values = read_tensors({"first": (first, ()), "second": (second, ())})
    return not torch.equal(values["first"], values["second"])


def check_operators(model_class: type[CausalLM], device: Device) -> None:
    """Raise ConfigError, naming the operators that the model needs and the device lacks."""
    lacking = sorted(model_class.operators - device.operators)
    if lacking:
        raise ConfigError(
            f"{model_class.__name__} needs {', '.join(lacking)}, which device {device.name} does not have; "
            "choose another --device"
        )


def build_model(model_class: type[CausalLM], config: dict[str, Any], context: ModelContext) -> CausalLM:
    """The model without weights. Raises CheckpointError, or ConfigError if the ranks cannot share it."""
    try:
        return model_class(config, context)
    except CannotSplit as error:
        refuse_model(error, model_class, config, context)


def refuse_model(
    error: CannotSplit, model_class: type[CausalLM], config: dict[str, Any], context: ModelContext
) -> NoReturn:
    """Raise ConfigError: what ranks cannot share, and how many can."""
    ranks = range(1, MOST_RANKS + 1)
    refuse_split(error, (each for each in ranks if error.fits(each) and divides(model_class, config, context, each)))


class RankOf(SingleRank):
    """Stands for rank 0 of a group that does not exist, to see how a model would be split."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size


def divides(model_class: type[CausalLM], config: dict[str, Any], context: ModelContext, ranks: int) -> bool:
    """Whether so many ranks can share the model."""
    try:
        model_class(config, replace(context, communicator=RankOf(ranks), max_positions=1))
    except CannotSplit:
        return False
    return True


def load_weights(
    model: CausalLM,
    directory: Path,
    stored: Mapping[str, StoredTensor],
    read: Read,
    scheme: Scheme | None = None,
    cache: WeightCache | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Load every leaf of the model; quantized ones from the cache, if it has them. Raises CheckpointError, or
    CannotSplit if a rank's part would straddle quantization groups of experts.

    stored, read: what there is in the directory, and how to read it.
    """
    stored = _unstacked(model, stored)
    stored = {_full_name(model, name, stored): tensor for name, tensor in stored.items()}
    if scheme is not None:
        _choose_formats(model, scheme, stored)
        _check_groups(model)
    leaves = [(path, module, module.parameters()) for path, module in model.named_modules()]
    parameters = {f"{path}.{name}": spec for path, _, specs in leaves for name, spec in specs.items()}
    sources = _match(model, parameters, stored, directory, scheme, read)
    jobs = [
        (path, module, {name: (sources[f"{path}.{name}"], spec.shard) for name, spec in specs.items()})
        for path, module, specs in leaves
        if specs
    ]

    def size(job: tuple[str, Module, Wanted]) -> int:
        return sum(stored.nbytes for stored, _ in job[2].values())

    # The largest first: a leaf's working copy then never exceeds what is still to come, and the peak is the model.
    jobs.sort(key=size, reverse=True)
    total, done = sum(map(size, jobs)), 0
    for job in jobs:
        path, module, wanted = job
        if not (cache and isinstance(module, PackedModule)):
            module.load(read(wanted))
        elif (packed := cache.get(path)) is not None:
            biases = {name: place for name, place in wanted.items() if name.endswith("bias")}
            module.load_packed(packed, read(biases))
        else:
            module.load(read(wanted))
            cache.keep(path, module.weight)
        done += size(job)
        if on_progress:
            on_progress(done, total)
    if cache:
        cache.commit()
    _give_freed_memory_back()


def _give_freed_memory_back() -> None:
    """glibc keeps what was freed between blocks in use: of a layer of quantized experts, as much as it takes."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _full_name(model: CausalLM, name: str, stored: Mapping[str, StoredTensor]) -> str:
    """A tensor's name in a whole model: files of a base model, such as embedding models are, leave out `model.`."""
    full = f"model.{name}"
    return full if full not in stored and not model.parameter_of(name) and model.parameter_of(full) else name


def _unstacked(model: CausalLM, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with those of each expert in place of stacked ones, if the model knows them. Raises CheckpointError
    where there are both, for nothing tells which are right."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        parts = unstack(tensor)
        if not any(model.parameter_of(_full_name(model, part, stored)) for part in parts):
            parts = {name: tensor}
        twice = next((part for part in parts if part in found), None)
        if twice is not None:
            names = f"{found[twice].name} and {name}"
            raise CheckpointError(f"{tensor.file} has {names}, which hold the same experts; remove one of them")
        found |= parts
    return found


def _choose_formats(model: CausalLM, scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
    """Ask the scheme for the format of every linear weight, and of embeddings that are quantized."""
    by_place: dict[str, tuple[str, dict[str, StoredTensor]]] = {}
    for name, tensor in stored.items():
        layer, _, last = name.rpartition(".")
        place = model.parameter_of(name)
        if place is not None:
            by_place.setdefault(place.removesuffix(last), (layer, {}))[1][last] = tensor
    for source, taker in model.tied.items():
        if f"{source}." in by_place:
            by_place[f"{taker}."] = by_place.pop(f"{source}.")
    for path, module in model.named_modules():
        if not isinstance(module, PackedModule):
            continue
        for prefix in module.formats:
            place = f"{path}.{prefix}"
            name = model.tensor_of(f"{place}weight").removesuffix(".weight")
            layer, tensors = by_place.get(place, (name, {}))
            # No scheme rounds an embedding.
            if not (module.role in ("embedding", "tied_head") and is_dense(tensors)):
                module.formats[prefix] = scheme.weight_format(layer, tensors)


def _check_groups(model: CausalLM) -> None:
    """Raise CannotSplit if a rank's part would straddle groups of experts: as smaller ones have to stand for all of an
    expert's then. Few are cut in a dense layer, and a part that lies within one cuts none in two of its own."""
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    if experts:
        group = lcm(*(each.group_inputs for each in experts))
        fit.check_groups(experts[0].intermediate_size, group, model.context.communicator.world_size)


def _match(
    model: CausalLM,
    wanted: dict[str, ParameterSpec],
    stored: Mapping[str, StoredTensor],
    directory: Path,
    scheme: Scheme | None,
    read: Read,
) -> dict[str, StoredTensor]:
    """The stored tensor of every wanted parameter. Raises CheckpointError if one is missing, unexpected or unfit."""
    found: dict[str, StoredTensor] = {}
    unexpected, left_out = [], model.left_out(stored)
    for name, tensor in stored.items():
        parameter = model.parameter_of(name)
        module, _, last = (parameter or "").rpartition(".")
        taken = f"{model.tied[module]}.{last}" if module in model.tied else ""
        if taken in wanted:
            found[taken] = tensor
        elif parameter in wanted:
            found.setdefault(parameter, tensor)
        elif not (
            name in left_out
            or (parameter and model.is_elsewhere(parameter))
            or _HARMLESS.search(name)
            or (scheme and scheme.ignored.fullmatch(name.rpartition(".")[2]))
        ):
            unexpected.append(name)
    # Exporters of 2023 gave every layer a bias.
    biases = [name for name in unexpected if name.endswith(".bias") and model.parameter_of(name)]
    unexpected = [name for name in unexpected if name not in biases or read({"": (stored[name], ())})[""].any()]
    missing = [model.tensor_of(parameter) for parameter in wanted if parameter not in found]
    if missing or unexpected:
        parts = [f"it lacks {listed(missing)}"] if missing else []
        parts += [f"it has {listed(sorted(unexpected))}, which the model does not know"] if unexpected else []
        raise CheckpointError(f"{directory} does not fit {type(model).__name__}: {'; '.join(parts)}")
    for parameter, spec in wanted.items():
        tensor = found[parameter]
        tensor.check_dtype(spec.dtypes)
        if tensor.shape != spec.shape:
            raise CheckpointError(
                f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)}, but config.json asks for "
                f"{list(spec.shape)}"
            )
    return found
