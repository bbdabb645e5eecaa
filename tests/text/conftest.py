"""Vocabularies to test with: the real ones where they are at hand, and small ones trained here."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass",
    "你好，世界。今天天气很好，我们去公园散步吧。",
    "Où est la bibliothèque ? Straße, naïve, façade, señor. 🙂🚀👩‍💻",
    "Numbers 0 1 2 3 42 1024  and   spaces    of many     lengths",
    "hello hello world worldly HELLO World, it's, they're, I'll, don't",
] * 10

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\r\n\r\n",
    "\t",
    "a",
    " a",
    "a ",
    "  two  spaces  ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "it's they're I'LL don't WE'VE",
    "1234567890 3.14159 1,000,000 0xFF 1e-9",
    "line one\nline two\r\nline three\n\n\nend\n",
    "def f(x: int) -> str:\n\tif x:\n\t\treturn f\"{x!r}\"  # comment\n    return ''",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] * c; } /* done */",
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10;",
    '{"key": [1, 2.5, null, true], "other": "\\u00e9\\n"}',
    "<html><body class='x'>&amp;</body></html>",
    "https://example.com/a/b?c=d&e=%20f#g",
    "人工智能正在改变世界。今天天气很好，我们去公园散步吧。",
    "未知字符：龘𠜎𠮷鑫",
    "日本語のテキスト、カタカナ、ひらがな。",
    "한국어 텍스트입니다.",
    "Привет, мир! Ёлка.",
    "Γειά σου Κόσμε",
    "שלום עולם, מה שלומך?",
    "مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "🙂",
    "🙂🚀🎉 emoji",
    "👩‍💻👨‍👩‍👧‍👦 joined 🏳️‍🌈",
    "👍🏽 skin 🇩🇪🇯🇵 flags",
    "e\u0301 combining a\u030a\u0323 o\u0308",
    "é composed Å ﬁ ligature ① ㎏",
    "Z̸̧a̵l̷g̶o̴ t̸e̷x̶t",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "\u202eright to left override\u202c",
    "non\u00a0breaking\u2003spaces\u3000here",
    "control \x00 \x01 \x1b[0m \x7f",
    "replacement \ufffd character",
    "private \ue000 use \U0010fffd",
    "▁under▁score▁",
    "Ġbyte Ċlevel",
    "<0x41><0xFF>",
    "<s>hi</s> there<unk>",
    "x<s> y</s>z",
    "<|im_start|>user\nhi<|im_end|>\n",
    "in text<|endoftext|>and on <|im_end|> <|im_start|>",
    '<tool_call>\n{"name": "f"}\n</tool_call>',
    "<|im_start|",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "a" * 500,
    "ab" * 300,
    "supercalifragilisticexpialidocious" * 20,
    "x" + " " * 300 + "y",
    "\n" * 100,
    "=" * 80,
    "-_-" * 50,
    "你" * 200,
    "The " * 200,
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """More than 200 varied texts: those above, and random mixtures of their pieces."""
    randomness = random.Random(1)
    mixtures = []
    for _ in range(150):
        parts = randomness.choices(TEXTS, k=randomness.randint(2, 5))
        cuts = [part[: randomness.randint(0, 60)] for part in parts]
        mixtures.append(randomness.choice(["", " ", "\n"]).join(cuts))
    return TEXTS + mixtures


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with files of real checkpoints."""
    path = (Path(__file__).parents[2] / "../shared/data").resolve()
    if not (path / "qwen2.5" / "tokenizer.json").exists():
        pytest.skip("the files of real checkpoints (../shared/data) are not here")
    return path


@pytest.fixture(scope="session", params=["qwen2.5", "qwq-32b"])
def qwen_directory(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the real config, tokenizer and chat template of Qwen2.5 or QwQ."""
    directory = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        source = shared_data / request.param / name
        shutil.copyfile(source if source.exists() else shared_data / "qwen2.5" / name, directory / name)
    return directory


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Write a small byte-level BPE tokenizer.json, trained on the texts above, and the given files beside it."""

    def write(config: dict[str, Any] | None = None, **files: Any) -> Path:
        small_byte_level().save(str(tmp_path / "tokenizer.json"))
        written = {"config": {"model_type": "llama"}, "tokenizer_config": config} | files
        for name, value in written.items():
            if value is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return tmp_path

    return write


def small_byte_level() -> Tokenizer:
    """Qwen's pipeline with 400 tokens, of which `<|endoftext|>` is special and `<tool_call>` added only."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.add_tokens(["<tool_call>"])
    return backend


@pytest.fixture(scope="session")
def train_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a tokenizer.model as Llama 2's was (no normalization), or with other options of the trainer."""

    def train(algorithm: str, byte_fallback: bool, config: dict[str, Any] | None = None, **options: Any) -> Path:
        directory = tmp_path_factory.mktemp("sentencepiece")
        llama = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_prefix=str(directory / "tokenizer"),
            model_type=algorithm,
            byte_fallback=byte_fallback,
            vocab_size=500 if byte_fallback else 240,
            hard_vocab_limit=False,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
            **(llama | options),
        )
        (directory / "config.json").write_text('{"model_type": "llama"}')
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True} | (config or {}))
        )
        return directory

    return train
