"""Loads the model that guesses what a larger one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from device.collectives.interface import SingleRank
from sophserve.checkpoint import read_config, resolve_model
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError
from sophserve.grammar.vocabulary import check_same_tokens
from sophserve.link.messages import Progress
from sophserve.model.config import resolve_dtype
from sophserve.model.context import ModelContext, resolve_activation_bits
from sophserve.model.decoder import CausalLM
from sophserve.model.loading import find_architecture, load_model


def load_smaller(
    config: EngineConfig,
    name: str,
    larger: Path,
    context: ModelContext,
    on_progress: Callable[[Progress], None],
) -> CausalLM:
    """The model of --speculative-model, whole on this rank. larger: the directory of the other. Raises ConfigError."""
    stage = "loading the weights of the model that guesses"
    on_progress(Progress(stage))
    try:
        directory = resolve_model(name)
        settings = read_config(directory)
        model_class, dtype = find_architecture(settings), resolve_dtype(settings, config.dtype)
        check_same_tokens(larger, directory)
        context = replace(
            context,
            communicator=SingleRank(),
            dtype=dtype,
            max_positions=min(context.max_positions, model_class.max_model_len(settings)),
            activation_bits=resolve_activation_bits(config.activation_bits, dtype, context.device),
            mtp=False,
            layers=None,
        )
        model = load_model(
            directory,
            context,
            lambda done, total: on_progress(Progress(stage, done, total)),
            model_class=model_class,
            cache_dir=config.reorder_cache_dir,
        )
        if not model.generates:
            raise ConfigError("its files hold no head, so that it says nothing")
    except SophserveError as error:
        raise ConfigError(f"--speculative-model {name}: {error}") from error
    return model
