"""How tokens are guessed, from the options that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sophserve.errors import ConfigError

_MOST_TOKENS = 64
_LOOKUP_SIZES = (8, 3)
_LONGEST_SIZE = 16
_OF_VLLM = {"method", "model", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"}
_METHODS = {"ngram": "lookup", "mtp": "mtp", "deepseek_mtp": "mtp"}


class Drafting(NamedTuple):
    """tokens: of one sequence that may be guessed in a step; 0 for none. sizes: of the n-grams that are looked up, the
    longest first; none where nothing is. mtp: whether the model's own layer for further tokens guesses, and needs_mtp
    whether it must have one."""

    tokens: int
    sizes: tuple[int, ...]
    mtp: bool
    needs_mtp: bool


def read_drafting(speculation: str, tokens: int, given: Mapping[str, Any]) -> Drafting:
    """given: as vLLM's --speculative-config. Raises ConfigError."""
    sizes: tuple[int, ...] = _LOOKUP_SIZES
    if given:
        speculation = _method(given, speculation)
        tokens = given.get("num_speculative_tokens", tokens)
        names = ("prompt_lookup_max", "prompt_lookup_min")
        most, least = (_size(given, name) for name in names)
        if most and least and least > most:
            raise ConfigError("--speculative-config: prompt_lookup_min must be at most prompt_lookup_max")
        sizes = tuple(sorted({size for size in (most, least) if size}, reverse=True)) or sizes
    if type(tokens) is not int or not 1 <= tokens <= _MOST_TOKENS:
        name = "--speculative-config: num_speculative_tokens" if given else "--speculative-tokens"
        raise ConfigError(f"{name} must be between 1 and {_MOST_TOKENS}, got {tokens}; --speculation off guesses none")
    return Drafting(
        0 if speculation == "off" else tokens,
        () if speculation == "mtp" else sizes,
        speculation in ("auto", "mtp"),
        speculation == "mtp",
    )


def _method(given: Mapping[str, Any], speculation: str) -> str:
    """What to guess by, as --speculation has it, which stands where nothing else is named."""
    if speculation == "off":
        raise ConfigError("--speculative-config asks for what --speculation off forbids; leave one of them out")
    name = given.get("method", str(given.get("model", "")).strip("[]"))
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


def _size(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and not (type(value) is int and 1 <= value <= _LONGEST_SIZE):
        raise ConfigError(f"--speculative-config: {name} must be between 1 and {_LONGEST_SIZE}, got {value}")
    return value
