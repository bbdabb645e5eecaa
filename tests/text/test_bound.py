"""The bound on characters a token holds, and that nothing exceeds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sophserve.text.bound import characters_per_token
from sophserve.text.tokenizer import Tokenizer

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def byte_level() -> Backend:
    vocabulary = {token: index for index, token in enumerate([*ALPHABET, "ĠĠ", "ĠĠĠĠ", "ab"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "b")]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return backend


def byte_fallback(vocabulary: dict[str, int], byte_fallback: bool = True) -> Backend:
    tokens = {"<unk>": 500, "▁": 501, **vocabulary}
    backend = Backend(
        models.BPE(vocab=tokens, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def bound(backend: Backend) -> int | None:
    return characters_per_token(Tokenizer(backend, {}, {}))


def test_known_forms() -> None:
    assert bound(byte_level()) == 4 * 4
    assert bound(byte_fallback(BYTES)) == 6
    backend = byte_level()
    backend.add_special_tokens(["<|a special token|>"])
    assert bound(backend) == 4 * 19


def test_no_bound_where_characters_can_vanish() -> None:
    unbounded: list[Any] = [byte_fallback(BYTES, byte_fallback=False), byte_fallback({"<0x00>": 0})]
    for change in (
        lambda backend: setattr(backend, "normalizer", normalizers.Strip()),
        lambda backend: setattr(backend, "normalizer", normalizers.Replace("  ", " ")),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Split(" ", "removed")),
        lambda backend: backend.add_tokens([AddedToken("<x>", rstrip=True)]),
        lambda backend: setattr(backend, "model", models.WordLevel({"a": 0, "<unk>": 1}, "<unk>")),
        lambda backend: setattr(backend, "model", models.BPE(vocab={"a": 0}, merges=[])),
    ):
        backend = byte_level()
        change(backend)
        unbounded.append(backend)
    assert [bound(backend) for backend in unbounded] == [None] * len(unbounded)


# Marks that composition puts into the character before them, spaces that one token takes, and all else.
TEXTS = st.text(st.one_of(st.sampled_from(" ab\u0313\u0300\u0345\u1100\u1161\u11a8"), st.characters(codec="utf-8")))


@given(text=TEXTS)
@settings(deadline=None)
@pytest.mark.parametrize("backend", [byte_level(), byte_fallback(BYTES)], ids=["byte-level", "byte-fallback"])
def test_no_text_exceeds_the_bound(backend: Backend, text: str) -> None:
    assert len(text) <= (bound(backend) or 0) * len(backend.encode(text).ids)


def test_real_checkpoint(make_checkpoint: Callable[..., Path]) -> None:
    directory = Path(__file__).parents[2] / "../shared/data/qwen2.5"
    if not directory.exists():
        pytest.skip("needs shared/data")
    tokenizer = Tokenizer.from_directory(directory)
    assert characters_per_token(tokenizer) == 4 * 128
    assert len(tokenizer.encode(" " * 1280)) == 10
