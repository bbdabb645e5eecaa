"""How long a text must be for its length alone to prove that it has too many tokens."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import models, pre_tokenizers

from sophserve.text.tokenizer import Tokenizer


def characters_per_token(tokenizer: Tokenizer) -> int | None:
    """No token of a text stands for more characters of it than this; None where that cannot be told.

    It can for byte-level BPE and for BPE with byte fallback, where no character is left out: there it is the length of
    the longest token, times the number of characters that normalization can make one of.
    """
    backend = tokenizer._backend
    factor = 1
    for step in _steps(backend.normalizer, "normalizers"):
        match step:
            case {"type": "NFC"}:
                factor *= 4  # no character decomposes canonically into more than four
            case {"type": "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": new} if len(old) <= len(new):
                pass
            case _:
                return None
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    if any(s["type"] not in ("ByteLevel", "Split", "Digits") or s.get("behavior") == "Removed" for s in splits):
        return None
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None  # such a token takes all spaces beside it
    if not isinstance(backend.model, models.BPE):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if any(step["type"] == "ByteLevel" for step in splits):
        bytes_as_tokens = pre_tokenizers.ByteLevel.alphabet()
    elif backend.model.byte_fallback:
        bytes_as_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        return None
    return factor * max(map(len, vocabulary)) if vocabulary.keys() >= set(bytes_as_tokens) else None


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """A part of the tokenizer in the words of tokenizer.json; a sequence as its steps."""
    if component is None:
        return []
    step = json.loads(component.__getstate__())
    return list(step[name]) if step["type"] == "Sequence" else [step]
