"""The corpus of the demo model: the same for the same seed, and free of what it must not teach."""

from __future__ import annotations

import itertools
import json
import re
from random import Random

import jsonschema

from sophserve.text.chat_template import ChatTemplate
from training.corpus.dialogue import document
from training.text import END, START, TEMPLATE, documents, rows, tokens, trained_tokenizer


def some(seed: int, count: int) -> list[str]:
    return list(itertools.islice(documents(seed), count))


def test_the_same_for_the_same_seed() -> None:
    assert some(5, 300) == some(5, 300)
    assert some(5, 300) != some(6, 300)


def test_texts_are_whole() -> None:
    for text in some(1, 3000):
        assert text.count(START) == text.count(END)
        answers = re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", text, re.S)
        for answer in answers:
            assert answer.strip() == answer != "", text
            if "<tool_call>" not in answer and "```" not in answer and "`" not in answer:
                assert not re.search(r"[{}]|\ba [aeio]\w+| {2}|\.\.(?!\.)", answer), answer


def test_calls_are_of_offered_functions() -> None:
    random, called = Random(2), 0
    template = ChatTemplate({"default": TEMPLATE.read_text(encoding="utf-8")}, {})
    for made in (document(random) for _ in range(2000)):
        if isinstance(made, str):
            continue
        messages, tools = made
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        text = template.render(messages, tools=tools or None, add_generation_prompt=False)
        answers = re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", text, re.S)
        for call in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", "\n".join(answers)):
            read = json.loads(call)
            jsonschema.validate(read["arguments"], offered[read["name"]])
            called += 1
    assert called > 100


def test_answers_are_learned_and_questions_are_not() -> None:
    tokenizer = trained_tokenizer(600, 1, 200)
    text = f"{START}user\nHi{END}\n{START}assistant\nHello.{END}"
    ids, learned = tokens(tokenizer, text)
    answer = list(itertools.compress(ids, learned))
    assert tokenizer.decode(answer, skip_special_tokens=False) == f"Hello.{END}"
    assert len(ids) == len(learned)
    assert all(tokens(tokenizer, "Once upon a time.")[1])


def test_rows_begin_with_documents() -> None:
    tokenizer = trained_tokenizer(600, 1, 200)
    found = list(itertools.islice(rows(tokenizer, 3, 64), 20))
    assert all(len(ids) == len(learned) == 64 for ids, learned in found)
    starts = [tokenizer.decode(ids[:1], skip_special_tokens=False) for ids, _ in found]
    assert starts.count(START) >= 18
