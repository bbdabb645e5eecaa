"""Calls whose numbers Python has no type for, and calls in thoughts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import pytest

from sophserve.plugins import tool_parsers
from sophserve.text.answer_events import AnswerParser, ParsedAnswer, Parser, ReasoningDelta
from sophserve.text.reasoning import ReasoningParser

PARSERS = {name: entry.value for name, entry in tool_parsers().items()}


def tools(name: str) -> Parser:
    return PARSERS[name](["f"])


def parse(parser: Parser, parts: Sequence[str]) -> ParsedAnswer:
    answer = ParsedAnswer()
    for part in parts:
        answer.add(parser.feed(part))
    answer.add(parser.finish())
    return answer


FIELDS = {"amount": "123", "rate": "1e400", "small": "-1.50", "exact": "0.1234567890123456789", "big": "9" * 500}
NUMBERS = "{" + ", ".join(f'"{name}": {text}' for name, text in FIELDS.items()) + "}"
NUMBERED = [
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {NUMBERS}}}</tool_call>'),
    ("hermes", f'<tool_call>{{"arguments": {NUMBERS}, "name": "f"}}</tool_call>'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {json.dumps(NUMBERS)}}}</tool_call>'),
    ("llama3_json", f'{{"name": "f", "parameters": {NUMBERS}}}'),
    ("mistral", f'[TOOL_CALLS][{{"name": "f", "arguments": {NUMBERS}}}]'),
    ("mistral", f"[TOOL_CALLS]f[ARGS]{NUMBERS}"),
    ("deepseek_v3", f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{NUMBERS}<｜tool▁call▁end｜>"),
    ("pythonic", "[f(" + ", ".join(f"{name}={text}" for name, text in FIELDS.items()) + ")]"),
]


@pytest.mark.parametrize(("name", "text"), NUMBERED)
def test_numbers_are_copied(name: str, text: str) -> None:
    """RFC 8259, section 6, bounds neither the size nor the digits of numbers: those that Python's float has not are
    no reason to cut a call."""
    for parts in ([text], list(text)):
        answer = parse(tools(name), parts)
        assert ([call.arguments for call in answer.calls], answer.content) == ([NUMBERS], "")


CALLED = [
    # a call in each format
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}'),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]'),
    ("deepseek_v3", '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>"),
]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("name", "call"), CALLED)
def test_a_call_ends_a_thought_that_is_never_closed(name: str, call: str, inside: bool) -> None:
    """vLLM PR#35687, vLLM#39056: only there, as a call may be a mere mention in one that is closed."""

    def answer(parts: Sequence[str], cut: bool = False) -> tuple[str, str, list[str]]:
        parser, found = AnswerParser(ReasoningParser(inside), partial(tools, name)), ParsedAnswer()
        for part in parts:
            found.add(parser.feed(part))
        found.add(parser.finish(cut))
        return found.reasoning, found.content, [call.arguments for call in found.calls]

    begin = "<think>" * (not inside)
    thought = f"I call it now.\n{call}"
    for text, cut, expected in (
        (f"{thought}\n", False, ("I call it now.", "", ['{"a": 1}'])),
        (f"{call}", False, ("", "", ['{"a": 1}'])),
        (f"{thought}\nSo.", False, ("I call it now.", "\nSo.", ['{"a": 1}'])),
        (f"{thought}\nSo.", True, (f"{thought}\nSo.", "", [])),
        (f"{thought}\nSo.\n</think>\nYes.", False, (f"{thought}\nSo.", "Yes.", [])),
        (f"{thought}</think>", False, (thought, "", [])),
        (f"{thought}</think>{call}", False, (thought, "", ['{"a": 1}'])),
        (thought[: -len(call) // 2], False, (thought[: -len(call) // 2], "", [])),
    ):
        assert answer([begin + text], cut) == answer(list(begin + text), cut) == expected, text


def test_reasoning_comes_as_it_is_written_up_to_a_call() -> None:
    parser = AnswerParser(ReasoningParser(True), partial(tools, "hermes"))
    assert parser.feed("I think of a <b") == [ReasoningDelta("I think of a <b")]
    assert parser.feed("> and of <tool_") == [ReasoningDelta("> and of")]
    assert parser.feed("call>s") == [ReasoningDelta(" <tool_call>s")]
    assert parser.feed(' <tool_call>{"name": "f", "arguments": {"a": 1}') == []
    assert parser.feed("}</tool_call>, say,") == []
    rest = ReasoningDelta(' <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>, say,')
    assert parser.feed("</think>") == [rest]
