"""The corpus as tokens: documents through the chat template and the tokenizer, packed into rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sophserve.text.chat_template import ChatTemplate
from training.corpus.dialogue import document

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
END_OF_TEXT, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
# Digits in twos at most, Chinese characters in runs, and words with the space before them.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Token ids, and which of them are to be learned.
Tokens = tuple[list[int], list[bool]]

_ANSWER = re.compile(re.escape(START) + r"assistant\n(.*?" + re.escape(END) + ")", re.S)


def documents(seed: int) -> Iterator[str]:
    """Endless documents, ended by no token yet; the same for the same seed."""
    random = Random(seed)
    template = ChatTemplate({"default": TEMPLATE.read_text(encoding="utf-8")}, {})
    while True:
        made = document(random)
        if isinstance(made, str):
            yield made
        else:
            messages, tools = made
            yield template.render(messages, tools=tools or None, add_generation_prompt=False).removesuffix("\n")


def trained_tokenizer(vocab_size: int, seed: int, texts: int) -> Tokenizer:
    """A byte-level BPE tokenizer of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = documents(seed)
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS + TOOL_TOKENS)))
    tokenizer.train_from_iterator((special.sub("", next(source)) for _ in range(texts)), trainer)
    tokenizer.add_tokens(list(TOOL_TOKENS))
    return tokenizer


def tokens(tokenizer: Tokenizer, text: str) -> Tokens:
    """Those of a document, its end included. Of a conversation only answers are to be learned."""
    encoding = tokenizer.encode(text + END_OF_TEXT, add_special_tokens=False)
    answers = [match.span(1) for match in _ANSWER.finditer(text)]
    if not answers:
        return encoding.ids, [True] * len(encoding.ids)
    parts = iter([*answers, (encoding.offsets[-1][1],) * 2])
    first, last = next(parts)
    learned = []
    for start, end in encoding.offsets:
        if start >= last:
            first, last = next(parts)
        learned.append(start < last and end > first)
    return encoding.ids, learned


def rows(tokenizer: Tokenizer, seed: int, length: int) -> Iterator[Tokens]:
    """Endless rows of `length` tokens. Each begins with a document and is filled up with further ones; the last one is
    cut off."""
    source = documents(seed)
    while True:
        ids: list[int] = []
        learned: list[bool] = []
        while len(ids) < length:
            more_ids, more_learned = tokens(tokenizer, next(source))
            ids += more_ids
            learned += more_learned
        yield ids[:length], learned[:length]
