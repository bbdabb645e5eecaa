"""How tokens are guessed, from the options that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sophserve.errors import ConfigError

MOST_TOKENS = 64
"""Of one sequence, at most, that are guessed in a step."""
_LOOKUP_SIZES = (8, 3)
_LONGEST_SIZE = 16
_OF_VLLM = {"method", "model", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"}
_METHODS = {"ngram": "lookup", "mtp": "mtp", "deepseek_mtp": "mtp", "draft_model": "draft", "eagle3": "draft"}
_NO_MODELS = ("ngram", "[ngram]")


class Drafting(NamedTuple):
    """tokens: of one sequence that may be guessed in a step; 0 for none. sizes: of the n-grams that are looked up, the
    longest first; none where nothing is. mtp: whether the model's own layer for further tokens guesses, and needs_mtp
    whether it must have one. model: a smaller model that guesses, a directory or a Hub id."""

    tokens: int
    sizes: tuple[int, ...]
    mtp: bool
    needs_mtp: bool
    model: str | None = None


def read_drafting(speculation: str, tokens: int, model: str | None, given: Mapping[str, Any]) -> Drafting:
    """given: as vLLM's --speculative-config. Raises ConfigError."""
    sizes: tuple[int, ...] = _LOOKUP_SIZES
    if given:
        speculation = _method(given, speculation)
        tokens = given.get("num_speculative_tokens", tokens)
        model = _model(given, model)
        names = ("prompt_lookup_max", "prompt_lookup_min")
        most, least = (_size(given, name) for name in names)
        if most and least and least > most:
            raise ConfigError("--speculative-config: prompt_lookup_min must be at most prompt_lookup_max")
        sizes = tuple(sorted({size for size in (most, least) if size}, reverse=True)) or sizes
    if type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS:
        name = "--speculative-config: num_speculative_tokens" if given else "--speculative-tokens"
        raise ConfigError(f"{name} must be between 1 and {MOST_TOKENS}, got {tokens}; --speculation off guesses none")
    if speculation == "draft" and model is None:
        raise ConfigError("--speculation draft needs --speculative-model, a smaller model that guesses")
    if model is not None and speculation not in ("auto", "draft"):
        raise ConfigError(f"--speculative-model has no use with --speculation {speculation}; leave one of them out")
    return Drafting(
        0 if speculation == "off" else tokens,
        () if speculation in ("mtp", "draft") else sizes,
        speculation == "mtp" or (speculation == "auto" and model is None),
        speculation == "mtp",
        model,
    )


def _method(given: Mapping[str, Any], speculation: str) -> str:
    """What to guess by, as --speculation has it, which stands where nothing else is named."""
    if speculation == "off":
        raise ConfigError("--speculative-config asks for what --speculation off forbids; leave one of them out")
    name = given.get("method", "ngram" if given.get("model") in _NO_MODELS else None)
    method = _METHODS.get(str(name)) if name else speculation
    if method is None:
        known = ", ".join(_METHODS)
        raise ConfigError(f"--speculative-config has the method {str(name)[:40]!r}; those that are there are {known}")
    if speculation not in ("auto", method):
        raise ConfigError(
            f"--speculative-config asks for {name}, and --speculation {speculation} for another; leave one of them out"
        )
    if unknown := sorted(given.keys() - _OF_VLLM):
        raise ConfigError(f"--speculative-config has {unknown[0][:40]!r}, which has no counterpart; leave it out")
    return method


def _model(given: Mapping[str, Any], model: str | None) -> str | None:
    """The smaller model, by either option."""
    named = given.get("model")
    if named is None or named in _NO_MODELS or _METHODS.get(str(given.get("method"))) == "mtp":
        return model  # vLLM takes the model's own directory for its layer
    if not isinstance(named, str) or not named:
        raise ConfigError(f"--speculative-config: model must be a directory or a Hub id, got {named!r}")
    if model not in (None, named):
        raise ConfigError(
            f"--speculative-config has the model {named}, and --speculative-model is {model}; leave one of them out"
        )
    return named


def _size(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and not (type(value) is int and 1 <= value <= _LONGEST_SIZE):
        raise ConfigError(f"--speculative-config: {name} must be between 1 and {_LONGEST_SIZE}, got {value}")
    return value
