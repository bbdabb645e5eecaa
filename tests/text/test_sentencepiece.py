"""tokenizer.model files against sentencepiece itself and against transformers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from sophserve.errors import CheckpointError
from sophserve.text.sentencepiece import read_model
from sophserve.text.tokenizer import Tokenizer

SPECIAL_TEXTS = ("<s>", "</s>", "<unk>")

NORMALIZED = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
NO_PREFIX = {"add_dummy_prefix": False}
SYMBOLS = {"user_defined_symbols": ["<sep>", "[INST]"], "control_symbols": ["<ctl>"]}


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{}, NORMALIZED, NO_PREFIX], ids=["identity", "normalized", "no_prefix"])
def test_equals_sentencepiece(
    train_sentencepiece: Callable[..., Path],
    texts: list[str],
    algorithm: str,
    byte_fallback: bool,
    options: dict[str, object],
) -> None:
    directory = train_sentencepiece(algorithm, byte_fallback, **options)
    ours = Tokenizer.from_directory(directory)
    theirs = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))
    # SentencePiece never reads a control token from a text, as every tokenizer of transformers does.
    others = list(SPECIAL_TEXTS)
    if algorithm == "unigram":
        # The library finds byte pieces in texts; and several ways to cut up a long run are equally probable.
        others += ["<0x", " " * 10, "\n" * 10]
    if "normalization_rule_name" in options:
        others += ["a\u030a\u0323"]  # the library normalizes a letter with all its marks at once
    plain = [text for text in texts if not any(other in text for other in others)]
    assert len(plain) > 150
    for text in plain:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, repr(text)
        assert ours.encode(text) == [1, *ids]
        if byte_fallback and not options:
            assert ours.decode(ids) == text.replace("▁", " ")
    assert ours.vocab_size == theirs.get_piece_size()
    assert (ours.bos_id, ours.eos_id, ours.bos_token, ours.eos_token) == (1, 2, "<s>", "</s>")


@pytest.mark.parametrize("symbols", [{}, SYMBOLS], ids=["plain", "symbols"])
def test_equals_transformers(
    train_sentencepiece: Callable[..., Path], texts: list[str], symbols: dict[str, list[str]]
) -> None:
    directory = train_sentencepiece("bpe", True, {"legacy": False}, **symbols)
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    for text in [*texts, "a<sep>b <ctl> [INST] c [/INST]<sep>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), repr(text)
    assert ours.special_ids == {0, 1, 2} | ({ours.encode("<ctl>", False)[-1]} if symbols else set())


def test_equals_transformers_without_byte_fallback(train_sentencepiece: Callable[..., Path], texts: list[str]) -> None:
    directory = train_sentencepiece("bpe", False, {"legacy": False})
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    compared = 0
    for text in texts:
        ids = ours.encode(text)
        if 0 in ids:
            continue  # transformers 5 drops unknown characters; SentencePiece, and so we, make them <unk>
        compared += 1
        assert ids == theirs.encode(text), repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert compared >= 10


def test_legacy_puts_the_prefix_after_special_tokens(train_sentencepiece: Callable[..., Path]) -> None:
    directory = train_sentencepiece("bpe", True, {"legacy": True})
    legacy = Tokenizer.from_directory(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": False}))
    modern = Tokenizer.from_directory(directory)
    assert [legacy.token_text(index) for index in legacy.encode("</s>hello")] == ["<s>", "</s>", " hello"]
    assert b"".join(map(modern.token_bytes, modern.encode("</s>hello"))) == b"<s></s>hello"
    assert legacy.encode("hello</s>") == modern.encode("hello</s>")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "<s> a"),
        ({"add_bos_token": False}, " a"),
        ({"add_eos_token": True}, "<s> a</s>"),
        ({"bos_token": None}, " a"),
        ({"bos_token": "<bos>"}, "<bos> a"),
        ({"add_prefix_space": False}, "<s>a"),
    ],
)
def test_config_of_llama(train_sentencepiece: Callable[..., Path], config: dict[str, object], expected: str) -> None:
    ours = Tokenizer.from_directory(train_sentencepiece("bpe", True, config))
    assert b"".join(map(ours.token_bytes, ours.encode("a"))).decode() == expected


def test_token_bytes(train_sentencepiece: Callable[..., Path], texts: list[str]) -> None:
    ours = Tokenizer.from_directory(train_sentencepiece("bpe", True))
    for text in texts:
        plain = text.replace("▁", " ")
        ids = ours.encode(text, add_special_tokens=False)
        joined = b"".join(map(ours.token_bytes, ids))
        if plain and not any(special in text for special in SPECIAL_TEXTS):
            assert joined.decode() == " " + plain
    assert ours.token_bytes(3 + 0x41) == b"A"
    assert ours.is_byte_token(3 + 0xFF)
    assert not ours.is_byte_token(1)


def test_without_bos_and_eos(train_sentencepiece: Callable[..., Path]) -> None:
    directory = train_sentencepiece("unigram", True, bos_id=-1, eos_id=-1)
    ours = Tokenizer.from_directory(directory)
    theirs = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))
    assert (ours.bos_id, ours.eos_id) == (None, None)
    assert ours.encode("hello world") == theirs.encode("hello world")


def test_damaged_files_are_named(train_sentencepiece: Callable[..., Path], tmp_path: Path) -> None:
    data = (train_sentencepiece("bpe", False, **NORMALIZED) / "tokenizer.model").read_bytes()
    damaged = [b"", b"\x00", b"not a model at all", b"\xff" * 100, data[: len(data) // 2], data[:-1], data[1:]]
    positions = [*range(60), *range(6000, len(data), 5000)]  # pieces, and the table of the normalizer
    damaged += [data[:at] + bytes([data[at] ^ 0x83]) + data[at + 1 :] for at in positions]
    refused = 0
    for content in damaged:
        (tmp_path / "tokenizer.model").write_bytes(content)
        try:
            Tokenizer.from_directory(tmp_path)
        except CheckpointError as error:
            assert "tokenizer.model" in str(error)
            refused += 1
    assert refused > len(damaged) / 2  # a flipped bit of a score or of a letter goes unseen


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field with a number below 16 * 8 and a value below 128 (or bytes that short)."""
    key = number << 3 | (2 if isinstance(value, bytes) else 0)
    head = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    return head + (bytes([len(value)]) + value if isinstance(value, bytes) else bytes([value]))


@pytest.mark.parametrize(
    ("trainer", "normalizer", "expected"),
    [
        (field(3, 3), b"", "only bpe and unigram"),
        (field(24, 1), b"", "before words"),
        (b"", field(5, 0), "before words"),
        (field(40, 9), b"", "outside its vocabulary"),
    ],
)
def test_models_that_cannot_be_served_are_refused(
    tmp_path: Path, trainer: bytes, normalizer: bytes, expected: str
) -> None:
    piece = field(1, b"<unk>") + b"\x15" + struct.pack("<f", 0.0) + field(3, 2)
    ends = b"".join(b"\xc8\x02" + b"\xff" * 9 + b"\x01" if number == 41 else b"" for number in (41, 42))
    ends += b"\xd0\x02" + b"\xff" * 9 + b"\x01"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(field(1, piece) + field(2, trainer + ends) + field(3, normalizer))
    with pytest.raises(CheckpointError, match=expected):
        read_model(path)
    path.write_bytes(field(1, piece) + field(2, ends) + field(3, b""))
    assert (read_model(path).pieces[0].text, read_model(path).bos_id, read_model(path).eos_id) == ("<unk>", -1, -1)
