"""What is checked before a worker starts: all that the options, the environment, config.json and the names in plugins'
source tell. What only a loaded model knows, the worker says; the rules and the words are those of `fit` for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sophserve import fit
from sophserve.checkpoint import quantization_config, read_config, resolve_smaller
from sophserve.config import EngineConfig
from sophserve.config_rules import check_routing, check_sizes
from sophserve.errors import ConfigError, SophserveError
from sophserve.plugins import image_processors
from sophserve.registered import Names, registered

OWN = "sophserve"
"""The distribution whose architectures are known to be decoders as `Decoder` has it."""


Size = Callable[..., int | None]
"""From a key of config.json, and what stands for it where it is absent, to its value if that is a size."""


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder by config.json. inner: the inner features of its MLPs, in the order of the layers. latent:
    channels that latent attention keeps of a token, on every rank; 0 where keys and values of heads are kept. sees:
    whether there is more to be split, which the architecture must know."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: tuple[int, ...]
    latent: int
    vocabulary: int
    sees: bool
    context: int | None  # None where the positions are scaled in a way that the architecture must know

    def split(self, ranks: int) -> int:
        """The channels that a layer keeps of a token on one rank, as devices share heads that have no opinion of it.
        Raises CannotSplit."""
        heads = partial(fit.heads_in_words, channels=self.head_dim)
        for things, fits in (
            (fit.vocabulary_in_words(self.vocabulary), -(-self.vocabulary // ranks) * (ranks - 1) < self.vocabulary),
            (heads(self.heads), self.heads % ranks == 0),
            (heads(self.kv_heads), self.kv_heads % ranks == 0 or ranks % self.kv_heads == 0),
            *((fit.columns_in_words(inner), inner % ranks == 0) for inner in self.inner),
        ):
            if not fits:
                raise fit.CannotSplit(things, ranks)
        return self.latent or 2 * max(1, self.kv_heads // ranks) * self.head_dim

    def splits(self, ranks: int) -> bool:
        """Whether so many ranks can share it."""
        try:
            self.split(ranks)
        except fit.CannotSplit:
            return False
        return True


def check(config: EngineConfig, directory: Path, ranks_here: int | None = None) -> None:
    """Raise SophserveError for what cannot work. ranks_here: of the group's, on this host, if not all."""
    devices = registered("register_devices")
    if config.device != "auto" and devices is not None:
        fit.check_device(config.device, devices.members)
    fit.device_index((ranks_here or config.world_size) - 1)
    settings = read_config(directory)
    architectures = registered("register_architectures")
    decoder = None
    if architectures is not None:
        decoder = _decoder(settings, architectures, fit.choose_architecture(settings, architectures.members))
    max_model_len = None
    if decoder is not None and decoder.context is not None:
        max_model_len = fit.resolve_max_model_len(config, decoder.context)
    dtype = fit.dtype_name(settings, config.dtype)
    _check_quantization(config.quantization, directory, settings)
    if decoder is not None:
        fit.check_stages(config, layers=decoder.layers, sees=decoder.sees)
        _check_sizes(config, decoder, max_model_len, dtype)
    if config.drafting.model:
        _check_smaller(config.drafting.model)


def _check_smaller(name: str) -> None:
    """Raise ConfigError for a model that cannot guess, as the worker does."""
    try:
        directory = resolve_smaller(name)
        settings, architectures = read_config(directory), registered("register_architectures")
        if architectures is not None and not fit.is_eagle3(settings):
            fit.choose_architecture(settings, architectures.members)
        _check_quantization(None, directory, settings)
    except SophserveError as error:
        raise ConfigError(f"--speculative-model {name}: {error}") from error


def _check_quantization(asked: str | None, directory: Path, settings: dict[str, Any]) -> None:
    known = registered("register_quantizations")
    if known is None:
        return
    given = quantization_config(directory, settings)
    if given is not None:
        fit.stored_method(given, asked, known.members)
    elif asked is not None:
        fit.check_quantizes(asked, [name for name, members in known.members.items() if "for_dense" in members])


def _check_sizes(config: EngineConfig, decoder: Decoder, max_model_len: int | None, dtype: str) -> None:
    try:
        channels = decoder.split(config.tensor_parallel_size)
    except fit.CannotSplit as error:
        if decoder.sees:
            return
        fit.refuse_split(error, filter(decoder.splits, range(1, fit.MOST_RANKS + 1)))
    budget = config.kv_cache_bytes
    if budget is not None and max_model_len is not None:
        # Of the stage with the most layers, at least.
        layers = -(-decoder.layers // config.pipeline_parallel_size)
        block_bytes = layers * channels * fit.DTYPES[dtype] * config.block_size
        fit.check_kv_room(budget, block_bytes, budget // block_bytes, config, max_model_len)


def _decoder(settings: dict[str, Any], architectures: Names, name: str) -> Decoder | None:
    """None where the architecture is another's, or gives a meaning of its own to what config.json does not say. Raises
    CheckpointError for what no model can be."""
    if architectures.distributions[name] != OWN:
        return None
    check_sizes(settings)
    check_routing(settings)
    defaults = architectures.members[name]

    def size(key: str, otherwise: int | None = None) -> int | None:
        value = settings.get(key)
        if value is None and key not in defaults:
            value = otherwise
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    if settings.get("kv_lora_rank") is not None:
        sizes, inner = _latent_sizes(size), _inner_within_groups(settings, size)
    else:
        sizes = _head_sizes(size)
        inner = _inner(settings, size, shared="shared_expert_intermediate_size" in defaults)
    sizes |= {"layers": size("num_hidden_layers"), "vocabulary": size("vocab_size")}
    found = {key: value for key, value in sizes.items() if value is not None}
    if len(found) < len(sizes) or inner is None or None in inner:
        return None
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default" if isinstance(scaling, dict) else None
    context = size("max_position_embeddings") if kind in ("default", "llama3", "mrope") else None
    known_inner = tuple(each for each in inner if each is not None)
    return Decoder(**found, inner=known_inner, sees=name in image_processors(), context=context)


def _head_sizes(size: Size) -> dict[str, int | None]:
    heads, hidden = size("num_attention_heads"), size("hidden_size")
    return {
        "heads": heads,
        "kv_heads": size("num_key_value_heads", heads),
        "head_dim": size("head_dim", hidden // heads if hidden and heads else None),
        "latent": 0,
    }


def _latent_sizes(size: Size) -> dict[str, int | None]:
    """Those of latent attention, for which num_key_value_heads and head_dim say nothing."""
    heads, latent = size("num_attention_heads"), size("kv_lora_rank")
    plain, rotated = size("qk_nope_head_dim"), size("qk_rope_head_dim")
    return {
        "heads": heads,
        "kv_heads": heads,
        "head_dim": plain + rotated if plain and rotated else None,
        "latent": latent + rotated if latent and rotated else None,
    }


def _inner(settings: dict[str, Any], size: Size, *, shared: bool) -> list[int | None] | None:
    """Decoder.inner, None for what is not known; None where config.json cannot be right. shared: whether the
    architecture has a shared expert."""
    experts = settings.get("num_experts") or settings.get("num_local_experts") or 0
    step, dense_layers = settings.get("decoder_sparse_step") or 1, settings.get("mlp_only_layers") or []
    if not (isinstance(experts, int) and isinstance(step, int) and isinstance(dense_layers, list)):
        return None
    sparse = [size("moe_intermediate_size"), *([size("shared_expert_intermediate_size")] if shared else [])]
    return _in_order(size, sparse, lambda layer: fit.has_experts(layer, experts, step, dense_layers))


def _inner_within_groups(settings: dict[str, Any], size: Size) -> list[int | None] | None:
    """Decoder.inner of DeepSeek's models."""
    first, step = settings.get("first_k_dense_replace"), settings.get("moe_layer_freq") or 1
    count, expert = settings.get("n_shared_experts") or 0, size("moe_intermediate_size")
    if not (isinstance(first, int) and isinstance(step, int) and isinstance(count, int) and expert):
        return None
    sparse: list[int | None] = [expert, *([count * expert] if count else [])]
    return _in_order(size, sparse, lambda layer: layer >= first and layer % step == 0)


def _in_order(size: Size, sparse: list[int | None], is_sparse: Callable[[int], bool]) -> list[int | None]:
    """The inner sizes of all layers, each once: those of a sparse layer, or that of a dense one."""
    dense = [size("intermediate_size")]
    layers = range(size("num_hidden_layers") or 0)
    return list(dict.fromkeys(inner for layer in layers for inner in (sparse if is_sparse(layer) else dense)))
