"""Incremental detokenization and stop texts: any cut gives what the whole gives."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sophserve.text.detokenizer import IncrementalDetokenizer, StopTextBuffer
from sophserve.text.tokenizer import Tokenizer


def stream(tokenizer: Tokenizer, parts: list[list[int]], skip: bool) -> list[str]:
    """The text that each push, and in the end finish, returns."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    return [*(detokenizer.push(part) for part in parts), detokenizer.finish()]


def cut(randomness: random.Random, ids: list[int]) -> list[list[int]]:
    """ids in parts of 0 to 3."""
    parts = []
    while ids:
        size = randomness.choice((0, 1, 1, 1, 2, 3))
        parts.append(ids[:size])
        ids = ids[size:]
    return parts


def assert_streams_equal_decode(tokenizer: Tokenizer, sequences: int) -> None:
    """Random ids: whole vocabulary, special tokens, parts of characters, ids beyond the vocabulary."""
    randomness = random.Random(2)
    size = tokenizer.vocab_size
    broken = [index for index in range(size) if "\ufffd" in tokenizer.token_text(index)]
    pools = [range(size), broken or range(size), sorted(tokenizer.special_ids), range(size, size + 50), range(300)]
    for _ in range(sequences):
        weights = randomness.choice(((8, 1, 1, 1, 1), (1, 8, 0, 0, 1), (1, 3, 3, 1, 3)))
        drawn = randomness.choices(pools, weights, k=randomness.randint(1, 24))
        ids = [randomness.choice(pool) for pool in drawn]
        skip = randomness.random() < 0.5
        assert "".join(stream(tokenizer, cut(randomness, ids), skip)) == tokenizer.decode(ids, skip), ids


def test_random_ids_of_the_real_vocabulary(qwen_directory: Path) -> None:
    assert_streams_equal_decode(Tokenizer.from_directory(qwen_directory), 3000)


def test_random_ids_of_a_small_vocabulary(write_tokenizer: Callable[..., Path]) -> None:
    config = {"eos_token": "<é>", "additional_special_tokens": ["<|im_start|>", "｜ünicode▁"]}
    assert_streams_equal_decode(Tokenizer.from_directory(write_tokenizer(config)), 1500)


@pytest.mark.parametrize("add_prefix_space", [True, False])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_random_ids_of_sentencepiece(
    train_sentencepiece: Callable[..., Path], algorithm: str, byte_fallback: bool, add_prefix_space: bool
) -> None:
    directory = train_sentencepiece(algorithm, byte_fallback, {"add_prefix_space": add_prefix_space})
    assert_streams_equal_decode(Tokenizer.from_directory(directory), 500)


def test_texts_come_back(write_tokenizer: Callable[..., Path], texts: list[str]) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(None))
    for text in texts:
        ids = tokenizer.encode(text)
        parts = stream(tokenizer, [[index] for index in ids], skip=False)
        assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=False)
        assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def byte_tokenizer() -> Tokenizer:
    """A byte-level vocabulary whose 256 ids are the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, {}, {})
    order = {tokenizer.token_bytes(index)[0]: character for index, character in enumerate(alphabet)}
    backend = Backend(models.BPE({order[byte]: byte for byte in range(256)}, []))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {}, {})


def test_special_tokens_that_are_shown(write_tokenizer: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer({"additional_special_tokens": ["<call>", "<other>"]}))
    shown = tokenizer.special_id("<call>")
    assert shown is not None and tokenizer.special_id("a") is None and tokenizer.special_id("nothing") is None
    ids = tokenizer.encode("a<call>b<other>c")
    detokenizer = IncrementalDetokenizer(tokenizer, shown=[shown])
    assert detokenizer.push(ids) + detokenizer.finish() == "a<call>bc"


def test_every_kind_of_broken_utf8() -> None:
    tokenizer = byte_tokenizer()
    # One byte of each class that a UTF-8 decoder tells apart (Unicode 17, table 3-7).
    classes = [0x41, 0x80, 0x90, 0xA0, 0xC0, 0xC2, 0xE0, 0xE1, 0xED, 0xEE, 0xF0, 0xF1, 0xF4, 0xF5]
    for length in (1, 2, 3, 4):
        for ids in itertools.product(classes, repeat=length):
            assert "".join(stream(tokenizer, [[index] for index in ids], False)) == tokenizer.decode(ids), ids


def test_characters_come_whole_and_at_once() -> None:
    tokenizer = byte_tokenizer()
    ids = list("a🙂é".encode())
    assert stream(tokenizer, [[index] for index in ids], True) == ["a", "", "", "", "🙂", "", "é", ""]
    assert stream(tokenizer, [ids[:3], ids[3:6], []], True) == ["a", "🙂", "", "\ufffd"]
    assert stream(tokenizer, [[0xF0], [0x9F], [0x41]], True) == ["", "", "\ufffdA", ""]


def test_byte_runs_wait_for_their_end(train_sentencepiece: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_directory(train_sentencepiece("bpe", True))
    smile = [3 + byte for byte in "🙂".encode()]
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert stream(tokenizer, [hello, smile, hello], True) == ["hello", "", "🙂 hello", ""]
    # One byte too many breaks the whole run, so nothing of it may have been given out before.
    assert stream(tokenizer, [hello, smile, smile[:1]], True) == ["hello", "", "", "\ufffd" * 5]
    assert stream(tokenizer, [[1], hello, [2]], True) == ["", "hello", "", ""]
    assert stream(tokenizer, [[1], hello, [2]], False) == ["<s>", " hello", "</s>", ""]


TOKENS = ["▁", "▁▁", "▁a", "b", "c▁", "▁▁d", "<0xE4>", "<0xBD>", "<0xA0>", "<0x41>", "<0xFF>", "<0x20>"]
TOKENS += ["<s>", "</s>", "##x", "##▁", "w</w>", ".", "n't", "'", ",", "\ufffd", "é", "｜", "|", "<pad>", "你"]

DECODERS: dict[str, decoders.Decoder | None] = {
    "none": None,
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "strip two": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "strip each": decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]),
    "bytes first": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]),
    "metaspace always": decoders.Metaspace("▁", "always"),
    "metaspace first": decoders.Metaspace("▁", "first"),
    "metaspace never": decoders.Metaspace("▁", "never"),
    "wordpiece": decoders.WordPiece("##", cleanup=True),
    "bpe suffix": decoders.BPEDecoder("</w>"),
    "ctc": decoders.CTC("<pad>", "|", cleanup=True),
    "byte level": decoders.ByteLevel(),
    "byte level, stripped": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("b", 1, 0)]),
}


def tokenizer_with(decoder: decoders.Decoder | None) -> Tokenizer:
    backend = Backend(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="b"))
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend, {}, {})


TOKENIZERS = {name: tokenizer_with(decoder) for name, decoder in DECODERS.items()}
PARTS = st.lists(st.lists(st.integers(0, len(TOKENS) + 2), max_size=3), max_size=12)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=100, deadline=None)
@given(parts=PARTS, skip=st.booleans())
def test_every_decoder(name: str, parts: list[list[int]], skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    assert "".join(stream(tokenizer, parts, skip)) == tokenizer.decode(itertools.chain(*parts), skip)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=100, deadline=None)
@given(before=st.lists(st.integers(0, len(TOKENS) + 2), max_size=8), parts=PARTS, skip=st.booleans())
def test_a_text_that_goes_on(name: str, before: list[int], parts: list[list[int]], skip: bool) -> None:
    """Behind a prompt comes what the decoding of both together has more than that of the prompt alone, such as the
    space of a first word."""
    tokenizer = TOKENIZERS[name]
    shown, whole = (tokenizer.decode([*before, *more], skip) for more in ([], itertools.chain(*parts)))
    assume(whole.startswith(shown))  # else the answer completes a character, or breaks one
    assume("\ufffd" not in shown or not any(map(tokenizer.is_byte_token, before)))  # whose run goes on to be broken
    detokenizer = IncrementalDetokenizer(tokenizer, skip, before=before)
    assert shown + "".join([*map(detokenizer.push, parts), detokenizer.finish()]) == whole


def test_a_character_that_goes_on() -> None:
    """A prompt of token ids may end within one: the answer that completes it has all of it, another one nothing."""
    for tokenizer, ids in (
        (byte_tokenizer(), list("né你🙂".encode())),
        (TOKENIZERS["llama"], [TOKENS.index(token) for token in ("▁a", "<0xE4>", "<0xBD>", "<0xA0>", "▁a")]),
    ):
        for cut in range(len(ids) + 1):
            shown = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
            detokenizer = IncrementalDetokenizer(tokenizer, before=ids[:cut])
            assert shown + detokenizer.push(ids[cut:]) + detokenizer.finish() == tokenizer.decode(ids), cut
            detokenizer = IncrementalDetokenizer(tokenizer, before=ids[:cut])
            assert "\ufffd" not in detokenizer.push(ids[:1]) + detokenizer.finish()


@pytest.mark.parametrize("name", ["llama", "gemma", "metaspace first"])
def test_text_is_not_late(name: str) -> None:
    """After every id that is not a byte, all text is out."""
    tokenizer, randomness = TOKENIZERS[name], random.Random(3)
    detokenizer, ids, text = IncrementalDetokenizer(tokenizer), [], ""
    for _ in range(2000):
        ids.append(randomness.randrange(len(TOKENS)))
        text += detokenizer.push(ids[-1:])
        if not TOKENS[ids[-1]].startswith("<0x") and ids[-1] not in tokenizer.special_ids:
            assert text == tokenizer.decode(ids)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the stop text that ends first (the longest of those) begins in the whole text."""
    found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(found)[0] - len(min(found)[2]), min(found)[2]) if found else None


def run_stops(parts: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    buffer, out = StopTextBuffer(stops, include), ""
    for part in parts:
        text, matched = buffer.push(part)
        out += text
        if matched is not None:
            return out + buffer.finish(), matched
    return out + buffer.finish(), None


LETTERS = st.text("ab ", max_size=6)


@settings(max_examples=700, deadline=None)
@given(
    parts=st.lists(LETTERS, max_size=10),
    stops=st.lists(st.text("ab ", min_size=1, max_size=6), max_size=4),
    include=st.booleans(),
)
def test_stop_texts_equal_a_search_of_the_whole(parts: list[str], stops: list[str], include: bool) -> None:
    text = "".join(parts)
    found = first_stop(text, stops)
    if found is None:
        assert run_stops(parts, stops, include) == (text, None)
    else:
        begin, stop = found
        assert run_stops(parts, stops, include) == (text[: begin + len(stop)] if include else text[:begin], stop)


@settings(max_examples=500, deadline=None)
@given(parts=st.lists(LETTERS, max_size=10), stops=st.lists(st.text("ab ", min_size=1, max_size=6), max_size=4))
def test_no_more_is_held_back_than_may_be_a_stop_text(parts: list[str], stops: list[str]) -> None:
    buffer, out, text = StopTextBuffer(stops), "", ""
    for part in parts:
        emitted, matched = buffer.push(part)
        if matched is not None:
            return
        out, text = out + emitted, text + part
        held = text[len(out) :]
        assert text.startswith(out)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_stop_texts_in_a_stream() -> None:
    buffer = StopTextBuffer(["\n\n", "END"])
    assert buffer.push("one\n") == ("one", None)
    assert buffer.push("two E") == ("\ntwo ", None)
    assert buffer.push("N") == ("", None)
    assert buffer.push("DLESS") == ("", "END")
    assert buffer.finish() == ""
    kept = StopTextBuffer(["END"], include_stop_str_in_output=True)
    assert kept.push("an EN") == ("an ", None)
    assert kept.push("D.") == ("END", "END")
    open_end = StopTextBuffer(["END"])
    assert open_end.push("the EN") == ("the ", None)
    assert open_end.finish() == "EN"
    assert StopTextBuffer([]).push("text") == ("text", None)


def test_long_stop_texts_take_linear_time() -> None:
    buffer = StopTextBuffer(["a" * 50_000 + "b"] * 2)
    out = "".join(buffer.push("a" * 100)[0] for _ in range(1000))
    assert out == "a" * 50_000
    assert buffer.push("b") == ("", "a" * 50_000 + "b")


def test_answers_to_one_request_share_what_is_known_of_their_stop_texts() -> None:
    stops = ["the end", "stop"]
    first, second = StopTextBuffer(stops), StopTextBuffer(list(stops))
    assert first._tables is second._tables
    assert first.push("the ") == ("", None)
    assert second.push("stop") == ("", "stop")
    assert first.push("end") == ("", "the end")
