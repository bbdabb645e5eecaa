"""Token ids, special tokens and errors of the tokenizer; transformers is the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from sophserve.errors import CheckpointError, RequestError
from sophserve.text import sentencepiece
from sophserve.text.tokenizer import Tokenizer


def assert_equal(directory: Path, texts: list[str], add_special_tokens: bool = True) -> Tokenizer:
    """Ids, decoded texts and special tokens are those of transformers."""
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    for text in texts:
        ids = ours.encode(text, add_special_tokens)
        assert ids == theirs.encode(text, add_special_tokens=add_special_tokens), repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), repr(text)
    assert (ours.bos_token, ours.bos_id) == (theirs.bos_token, theirs.bos_token_id)
    assert (ours.eos_token, ours.eos_id) == (theirs.eos_token, theirs.eos_token_id)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert {theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens} <= ours.special_ids
    return ours


def test_real_qwen_equals_transformers(qwen_directory: Path, texts: list[str]) -> None:
    assert len(texts) >= 200
    ours = assert_equal(qwen_directory, texts)
    # QwQ's tokenizer_config adds <think> and three more to the vocabulary of Qwen2.5.
    assert ours.vocab_size == (151669 if "qwq" in qwen_directory.name else 151665)
    assert (ours.bos_id, ours.eos_id) == (None, 151645)
    assert len(ours.special_ids) == 14


@pytest.mark.parametrize("qwen_directory", ["qwen2.5", pytest.param("qwq-32b", marks=pytest.mark.slow)], indirect=True)
def test_vocab_and_merges_equal_tokenizer_json(qwen_directory: Path, tmp_path: Path, texts: list[str]) -> None:
    model = json.loads((qwen_directory / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    (tmp_path / "tokenizer_config.json").write_text((qwen_directory / "tokenizer_config.json").read_text())
    ours, theirs = Tokenizer.from_directory(tmp_path), Tokenizer.from_directory(qwen_directory)
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert ours.special_ids == theirs.special_ids


def test_small_tokenizer_equals_transformers(write_tokenizer: Callable[..., Path], texts: list[str]) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True},
        "additional_special_tokens": ["<|im_start|>", "<unk>"],
    }
    ours = assert_equal(write_tokenizer(config), texts)
    assert ours.decode(ours.encode("a<|im_end|>b<tool_call>")) == "ab<tool_call>"
    assert ours.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_added_tokens_decoder_sets_flags(write_tokenizer: Callable[..., Path], texts: list[str]) -> None:
    def token(content: str, special: bool, strip: bool = False) -> dict[str, Any]:
        flags = {"lstrip": strip, "rstrip": strip, "normalized": False, "single_word": False, "special": special}
        return {"content": content} | flags

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            "402": token("<|im_start|>", special=True),
            "403": token("<|im_end|>", special=True, strip=True),
            "404": token("<|vision_start|>", special=False),
            # tokenizer.json has these two as special and not special.
            "400": token("<|endoftext|>", special=True),
            "401": token("<tool_call>", special=True),
        },
        "bos_token": {"__type": "AddedToken", **token("<|im_start|>", special=True)},
        "eos_token": "<|im_end|>",
    }
    ours = assert_equal(write_tokenizer(config), texts)
    assert [ours.token_text(index) for index in (402, 403, 404)] == ["<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    assert ours.special_ids == {400, 401, 402, 403}


def test_older_files_beside_the_vocabulary(write_tokenizer: Callable[..., Path], texts: list[str]) -> None:
    directory = write_tokenizer(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"},
        special_tokens_map={"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"},
        added_tokens={"</s>": 403, "<s>": 402, "<unk>": 404},
    )
    ours = assert_equal(directory, texts)
    assert (ours.bos_id, ours.eos_id, ours.encode("<unk>")) == (402, 403, [404])
    assert ours.special_ids == {400, 402, 403}


def test_without_tokenizer_config(write_tokenizer: Callable[..., Path]) -> None:
    ours = Tokenizer.from_directory(write_tokenizer(None))
    assert (ours.bos_id, ours.eos_id, ours.special_tokens) == (None, None, {})
    assert ours.decode(ours.encode("hello")) == "hello"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"add_bos_token": True}, [402, 72]),
        ({"add_bos_token": False}, [72]),
        ({"add_bos_token": True, "add_eos_token": True}, [402, 72, 403]),
        ({"add_eos_token": True}, [402, 72, 403]),
        ({}, [72, 403]),
    ],
)
def test_llama_flags_override_the_template(
    write_tokenizer: Callable[..., Path], flags: dict[str, bool], expected: list[int]
) -> None:
    names = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    directory = write_tokenizer(names | flags)
    add_template(directory)
    ours = Tokenizer.from_directory(directory)
    h = ours.encode("h", add_special_tokens=False)
    assert ours.encode("h") == [h[0] if index == 72 else index for index in expected]


def test_template_of_tokenizer_json_counts_for_others(write_tokenizer: Callable[..., Path], texts: list[str]) -> None:
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    directory = write_tokenizer(names | {"add_bos_token": True})
    add_template(directory)
    ours = assert_equal(directory, texts)
    assert ours.encode("")[-1] == ours.eos_id == 403


def add_template(directory: Path) -> None:
    """Make tokenizer.json put `</s>` behind every text."""
    from tokenizers import processors

    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 403)])
    backend.save(str(directory / "tokenizer.json"))


def test_truncation_and_padding_of_the_file_are_ignored(write_tokenizer: Callable[..., Path]) -> None:
    directory = write_tokenizer(None)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(5)
    backend.enable_padding(length=50)
    backend.save(str(directory / "tokenizer.json"))
    assert len(Tokenizer.from_directory(directory).encode("x y z " * 20)) > 50
    assert len(Tokenizer.from_directory(directory).encode("x")) == 1


def test_token_bytes_join_to_the_text(qwen_directory: Path, texts: list[str]) -> None:
    ours = Tokenizer.from_directory(qwen_directory)
    for text in texts:
        ids = ours.encode(text)
        joined = b"".join(map(ours.token_bytes, ids))
        assert joined.decode() == ours.decode(ids, skip_special_tokens=False)
    part = ours.encode("龘")[0]
    assert ours.token_bytes(part) in "龘".encode()
    assert ours.token_text(part) == "\ufffd"
    assert ours.token_text(ours.eos_id or 0) == "<|im_end|>"


def test_ids_outside_the_vocabulary_are_empty(write_tokenizer: Callable[..., Path]) -> None:
    ours = Tokenizer.from_directory(write_tokenizer(None))
    for index in (-1, ours.vocab_size, 2**32 - 1, 2**32, 2**70):
        assert ours.decode([index]) == ours.token_text(index) == ""
        assert not ours.in_vocabulary(index)
    assert ours.in_vocabulary(ours.vocab_size - 1)


def test_half_a_surrogate_pair_is_refused(write_tokenizer: Callable[..., Path]) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        Tokenizer.from_directory(write_tokenizer(None)).encode("a\ud83d")


SPACED = ["Hello world", "Hello", "a", "", "(x)", "two  spaces", "end "]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_add_prefix_space_of_the_config_wins(
    train_sentencepiece: Callable[..., Path], prefix: bool, in_file: bool, legacy: bool
) -> None:
    directory = train_sentencepiece("bpe", True, {"add_prefix_space": prefix, "eos_token": "</s>", "bos_token": "<s>"})
    model = sentencepiece.read_model(directory / "tokenizer.model")
    sentencepiece.build_tokenizer(model, legacy, in_file).save(str(directory / "tokenizer.json"))
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    for text in SPACED if prefix else [*SPACED, " Hello", "  a"]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == text


def test_add_prefix_space_of_byte_level(write_tokenizer: Callable[..., Path]) -> None:
    ids = {}
    for prefix in (True, False):
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix}
        tokenizer = Tokenizer.from_directory(write_tokenizer(config))
        ids[prefix] = [tokenizer.encode(text, add_special_tokens=False) for text in ("Hello world", " Hello world")]
    assert ids[True][0] == ids[True][1] == ids[False][1] != ids[False][0]


def test_normalized_of_the_config_wins(train_sentencepiece: Callable[..., Path]) -> None:
    added = {"content": "<sep>", "lstrip": False, "rstrip": False, "single_word": False, "special": False}
    config = {"added_tokens_decoder": {"500": added | {"normalized": False}}}
    directory = train_sentencepiece("bpe", True, config | {"eos_token": "</s>", "bos_token": "<s>"})
    backend = sentencepiece.build_tokenizer(sentencepiece.read_model(directory / "tokenizer.model"), True, True)
    backend.add_tokens([AddedToken("<sep>", normalized=True)])
    backend.save(str(directory / "tokenizer.json"))
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    ids = ours.encode("ab<sep> cd <sep>ef", add_special_tokens=False)
    assert 500 in ids
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_a_vocabulary_of_tiktoken_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(CheckpointError, match=r"is a vocabulary of tiktoken.*tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


BAD_FILES = [
    ("tokenizer.json", "{", "tokenizer.json"),
    ("tokenizer.json", '{"version": "1.0", "model": {"type": "Magic"}}', "tokenizer.json"),
    ("tokenizer_config.json", "not json", "tokenizer_config.json"),
    ("tokenizer_config.json", "[1]", "must hold a JSON object"),
    ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "tokenizer_config.json"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<a>"}}}', "tokenizer_config.json"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"500": {"special": true}}}', "tokenizer_config.json"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"500": {"content": 7}}}', "tokenizer_config.json"),
    ("tokenizer_config.json", '{"bos_token": {"text": "<s>"}}', "tokenizer_config.json"),
    ("tokenizer_config.json", '{"additional_special_tokens": [3]}', "tokenizer_config.json"),
    ("special_tokens_map.json", '"<s>"', "special_tokens_map.json"),
    ("added_tokens.json", '{"<s>": "x", "</s>": 1}', "added_tokens.json"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BAD_FILES)
def test_malformed_files_are_named(
    write_tokenizer: Callable[..., Path], name: str, content: str, expected: str
) -> None:
    directory = write_tokenizer(None)
    (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=expected) as caught:
        Tokenizer.from_directory(directory)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs a tokenizer\.json, a tokenizer\.model, or a vocab\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match="for tokenizer_class Qwen2Tokenizer only, not an unknown one"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(CheckpointError, match="cannot read vocab"):
        Tokenizer.from_directory(tmp_path)


def test_vocabulary_with_holes(tmp_path: Path) -> None:
    Backend(models.WordLevel({"a": 0, "b": 7}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_directory(tmp_path).vocab_size == 8


def test_encode_releases_the_gil(write_tokenizer: Callable[..., Path]) -> None:
    ours = Tokenizer.from_directory(write_tokenizer(None))
    text = "The quick brown fox. 你好世界。\n" * 20000
    thread = threading.Thread(target=ours.encode, args=(text,))
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks >= 20


def test_import_is_light() -> None:
    modules = "sophserve.text.tokenizer, sophserve.text.detokenizer, sophserve.text.chat_template"
    heavy = "{'torch', 'transformers', 'jinja2', 'numpy', 'huggingface_hub'}"
    code = f"import sys, {modules}; print(*({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
