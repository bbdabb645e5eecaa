"""Whether a tokenizer puts a space before a text, where tokenizer_config.json says otherwise than tokenizer.json."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

_SPACE = "▁"
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def set_prefix_space(tokenizer: Tokenizer, prefix: bool) -> None:
    """Let a text begin with a space, or not: in byte-level BPE, and in both forms of SentencePiece's."""
    before, within, after = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer), _steps(tokenizer.decoder)
    for step in within + after:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = prefix
        elif step["type"] == "Metaspace":
            scheme = step["prepend_scheme"] if step["prepend_scheme"] != "never" else "first"
            step["prepend_scheme"] = scheme if prefix else "never"
    marks = next(
        (index for index, step in enumerate(before) if step["type"] == "Replace" and step["content"] == _SPACE), None
    )
    if marks is not None:
        before = _with(before, _PREPEND, prefix, marks)
    if any(step["type"] == "Replace" and step["content"] == " " for step in after):
        after = _with(after, _STRIP, prefix, len(after))
    if before:
        tokenizer.normalizer = _made(normalizers.Sequence([]), "normalizers", before)
    if within:
        tokenizer.pre_tokenizer = _made(pre_tokenizers.Sequence([]), "pretokenizers", within)
    if after:
        tokenizer.decoder = _made(decoders.Sequence([]), "decoders", after)


def _steps(part: Any) -> list[dict[str, Any]]:
    """What a normalizer, pre-tokenizer or decoder does, in order."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    steps: list[dict[str, Any]] = next((value for value in state.values() if isinstance(value, list)), [state])
    return steps if state["type"] == "Sequence" else [state]


def _with(steps: list[dict[str, Any]], step: dict[str, Any], wanted: bool, place: int) -> list[dict[str, Any]]:
    if not wanted:
        return [each for each in steps if each != step]
    return steps if step in steps else [*steps[:place], step, *steps[place:]]


def _made(sequence: Any, name: str, steps: list[dict[str, Any]]) -> Any:
    sequence.__setstate__(json.dumps({"type": "Sequence", name: steps}).encode())
    return sequence
