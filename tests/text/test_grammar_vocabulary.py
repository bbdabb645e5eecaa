"""Grammars over SentencePiece's tokenizers and real ones, which see texts in other ways than the bytes of tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.grammar.vocabulary import Vocabulary
from sophserve.sampling import StructuredOutput, Thought
from sophserve.text.tokenizer import Tokenizer

CHOICES = ["The quick fox", " leading", "two  spaces\nand\tmore", "é🙂 人工智能", "</s><s>", "", "<0x41>"]


def answer(compiler: GrammarCompiler, structured: StructuredOutput, end: int, seed: int) -> list[int]:
    grammar = AnswerGrammar(compiler, structured, [end])
    generator = random.Random(seed)
    output: list[int] = []
    while not output or output[-1] != end:
        mask = int.from_bytes(grammar.mask(output), "little")
        output.append(generator.choice([index for index in range(mask.bit_length()) if mask >> index & 1]))
    return output[:-1]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece(train_sentencepiece: Callable[..., Path], algorithm: str, legacy: bool) -> None:
    tokenizer = Tokenizer.from_directory(train_sentencepiece(algorithm, True, {"legacy": legacy}))
    assert tokenizer.eos_id is not None
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + 3, [tokenizer.eos_id])
    for text in CHOICES:
        structured = StructuredOutput("choice", json.dumps([text]))
        for seed in range(3):
            output = answer(compiler, structured, tokenizer.eos_id, seed)
            assert b"".join(map(tokenizer.token_bytes, output)).decode() == text
            assert not tokenizer.special_ids & set(output)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_tokens_of_forced_text(train_sentencepiece: Callable[..., Path], algorithm: str) -> None:
    tokenizer = Tokenizer.from_directory(train_sentencepiece(algorithm, True))
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size, [2])
    for text in CHOICES:
        assert b"".join(map(tokenizer.token_bytes, vocabulary(text.encode()))).decode() == text
    # As within a text, and not as at its beginning.
    within = tokenizer.encode("x\nThe quick", add_special_tokens=False)
    assert vocabulary("The quick") == within[-len(vocabulary("The quick")) :]


def test_a_text_that_no_token_spells(train_sentencepiece: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_directory(train_sentencepiece("bpe", False))
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size, [2])
    found = b"".join(map(tokenizer.token_bytes, vocabulary("The ᚠ")))
    assert found == b"The "


def test_real_vocabularies(qwen_directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(qwen_directory)
    assert tokenizer.eos_id is not None
    compiler = GrammarCompiler(tokenizer, 152064, [tokenizer.eos_id])
    value = {"name": "<|im_end|>é🙂", "n": [1, 2.5, None], "</think>": True}
    structured = StructuredOutput("json_schema", json.dumps({"const": value}))
    output = answer(compiler, structured, tokenizer.eos_id, 1)
    assert json.loads(tokenizer.decode(output)) == value
    thought, form = Thought("<think>", "</think>", inside=True), StructuredOutput("choice", '["yes"]')
    grammar = AnswerGrammar(compiler, form, [tokenizer.eos_id], thought)
    [yes] = tokenizer.encode("yes")
    mask = int.from_bytes(grammar.mask(tokenizer.encode("hm</think>\n\n")), "little")
    blanks = {index for index in range(tokenizer.vocab_size) if mask >> index & 1} - {yes}
    assert mask >> yes & 1 and {tokenizer.token_bytes(index).strip() for index in blanks} == {b""}
