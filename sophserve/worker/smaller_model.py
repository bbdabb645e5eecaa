"""Loads the model that guesses what a larger one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from device.collectives.interface import SingleRank
from sophserve.checkpoint import read_config, resolve_smaller
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError
from sophserve.grammar.vocabulary import check_same_tokens
from sophserve.link.messages import Progress
from sophserve.model.config import resolve_dtype
from sophserve.model.context import resolve_activation_bits
from sophserve.model.decoder import CausalLM
from sophserve.model.eagle3 import Eagle3, find_smaller, load_eagle3
from sophserve.model.loading import load_model


def load_smaller(
    config: EngineConfig,
    name: str,
    directory: Path,
    larger: CausalLM,
    on_progress: Callable[[Progress], None],
) -> CausalLM:
    """The model of --speculative-model, whole on this rank, or the head, whose model is to hand out what it takes.
    larger: that model, of the directory. Raises ConfigError."""
    stage = "loading the weights of the model that guesses"
    on_progress(Progress(stage))

    def report(done: int, total: int) -> None:
        on_progress(Progress(stage, done, total))

    try:
        smaller = resolve_smaller(name)
        settings = read_config(smaller)
        model_class, dtype = find_smaller(settings), resolve_dtype(settings, config.dtype)
        context = replace(
            larger.context,
            communicator=SingleRank(),
            dtype=dtype,
            activation_bits=resolve_activation_bits(config.activation_bits, dtype, larger.context.device),
            mtp=False,
            layers=None,
        )
        if model_class is Eagle3:
            if larger.context.layers is not None and not (larger.is_first and larger.is_last):
                raise ConfigError("a head needs all layers in one stage; leave out --pipeline-parallel-size")
            head = load_eagle3(smaller, settings, larger, directory, context, report)
            larger.hand_out(head.config.layers_of(larger.config.num_hidden_layers))
            return head
        check_same_tokens(directory, smaller)
        context = replace(context, max_positions=min(context.max_positions, model_class.max_model_len(settings)))
        model = load_model(smaller, context, report, model_class=model_class, cache_dir=config.reorder_cache_dir)
        if not model.generates:
            raise ConfigError("its files hold no head, so that it says nothing")
    except SophserveError as error:
        raise ConfigError(f"--speculative-model {name}: {error}") from error
    return model
