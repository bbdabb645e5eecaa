"""Tool calls and reasoning in generated text: the shapes that models write, and any cut of any text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophserve.config import ServerConfig
from sophserve.errors import ConfigError
from sophserve.plugins import reasoning_parsers, tool_parsers
from sophserve.text.answer_events import (
    AnswerParser,
    ArgumentsDelta,
    CallBroken,
    CallStart,
    ParsedAnswer,
    Parser,
)
from sophserve.text.parsers import check_parsers, chosen
from sophserve.text.reasoning import MistralReasoningParser, ReasoningParser

PARSERS = {name: entry.value for name, entry in tool_parsers().items()}
NAMES = ("f", "get_weather", "a.b-c")
Calls = list[tuple[str, dict[str, Any]]]


def parse(parser: Parser, parts: Sequence[str]) -> ParsedAnswer:
    answer = ParsedAnswer()
    for part in parts:
        answer.add(parser.feed(part))
    answer.add(parser.finish())
    return answer


def tools(name: str) -> Parser:
    return PARSERS[name](NAMES)


def assert_parsed(name: str, text: str, content: str, calls: Calls) -> None:
    for parts in ([text], list(text)):
        answer = parse(tools(name), parts)
        assert answer.content == content
        assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == calls


V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
SHAPES: list[tuple[str, str, str, Calls]] = [
    # parser, text, content, calls
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", {"a": 1})]),
    (
        "hermes",
        'Let me see.\n\n<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call> \\" }{"}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "other"}\n</tool_call>\n',
        "Let me see.",
        [("f", {"a": '</tool_call> " }{'}), ("other", {})],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>\nDone.', "\nDone.", [("f", {})]),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>', "", [("f", {"a": "1\n2"})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>', "", [("f", {"a": "\ud800"})]),
    ("llama3_json", '{"name": "f", "parameters": {"a": [1, {"b": null}]}}', "", [("f", {"a": [1, {"b": None}]})]),
    ("llama3_json", '<|python_tag|>{"name": "new", "parameters": {}}', "", [("new", {})]),
    (
        "llama3_json",
        ' {"type": "function", "name": "f", "parameters": {}}; {"name": "get_weather", "arguments": {"a": 1}}',
        "",
        [("f", {}), ("get_weather", {"a": 1})],
    ),
    ("llama3_json", 'I call:\n<|python_tag|>{"name": "f", "parameters": {}}', "I call:", [("f", {})]),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "", [("f", {"a": 1})]),
    (
        "mistral",
        'Yes[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "123456789"}, {"name": "g", "arguments": {"a": "]"}}]',
        "Yes",
        [("f", {}), ("g", {"a": "]"})],
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": 2}', "", [("f", {"a": 1}), ("g", {"b": 2})]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}', "", [("f", {"a": 1})]),
    (
        "deepseek_v3",
        "Hm.<｜tool▁calls▁begin｜>" + V3.format("f", '{"a": 1}') + "\n" + V3.format("g", "{}") + "<｜tool▁calls▁end｜>",
        "Hm.",
        [("f", {"a": 1}), ("g", {})],
    ),
    (
        "deepseek_v3",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>g<｜tool▁sep｜>{"b": "```"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "",
        [("f", {"a": 1}), ("g", {"b": "```"})],
    ),
    (
        "pythonic",
        "[f(a=1, b=\"x]'\", c=[-1.5, None, True], d={'k': (1, false)}), get_weather()]",
        "",
        [("f", {"a": 1, "b": "x]'", "c": [-1.5, None, True], "d": {"k": [1, False]}}), ("get_weather", {})],
    ),
    ("pythonic", "<|python_start|>[new.tool(a='é')]<|python_end|>", "", [("new.tool", {"a": "é"})]),
]

LONG = "x" * 80
BROKEN_OFF = [
    # Calls that begin, and come to no end: to whoever has not seen them begin they are content (vLLM#42210).
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "rm /tm'),
    ("hermes", 'Hm.\n<tool_call>\n{"name": "f", "arguments": {"a": 1, b}}\n</tool_call>\nDone.'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [{"b": 1}, {"c'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": "{LONG}'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": "{LONG}\\u00'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": ["{LONG}\n\\x"'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": 1, "b": "{LONG}</tool_call><tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "<tool_call>{\\"name\\": \\"f\\"}</tool_call>'),
    ("llama3_json", '{"name": "f", "parameters": {"a": true, "b": 12'),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": true, oops}}; {"name": "f", "parameters": {}}'),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1, "b'),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1, "b'),
    (
        "deepseek_v3",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1,}'
        "<｜tool▁call▁end｜>\n<｜tool▁calls▁end｜>\nDone.",
    ),
]

LEFT_OVER: list[tuple[str, str, str, Calls]] = [
    # What is left of calls behind complete ones is nothing.
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, "id"', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "f', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, "id": 5}</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g", "arguments": {"a": 1', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, oops}</tool_call>\nDone.', "\nDone.", [("f", {})]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, oops]', "", [("f", {})]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "argu', "", [("f", {})]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1,', "", [("f", {})]),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1, [TOOL_CALLS]g[ARGS]{}', '[TOOL_CALLS]f[ARGS]{"a": 1, ', [("g", {})]),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|><|python_start|>[f(a=", "", [("f", {"a": 1})]),
]

MALFORMED = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "1}\n</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\x"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {1: 1}}'),
    ("hermes", '<tool_call>{"name": "f" "arguments": {}}'),
    ("hermes", "<tool_call>{}</tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "unfinished'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1.}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>" + '{"a":' * 5000 + "1" + "}" * 5000),
    ("hermes", "a < b, <tool_calls>, <tool_call> is a tag <tool"),
    ("hermes", " \n"),
    ("llama3_json", '{"name": "Bob", "parameters": {}}'),
    ("llama3_json", '{"name": "f", "age": 3}'),
    ("llama3_json", 'Here: {"name": "f", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS]f[ARGS]{"),
    ("mistral", "[TOOL_CALLS] two words"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>[1]<｜tool▁call▁end｜>"),
    ("pythonic", "[1] is a footnote, [link](url)"),
    ("pythonic", "[f(1)]"),
    ("pythonic", "[f(**x)]"),
    ("pythonic", "[f(a=open('x'))]"),
    ("pythonic", "[f(a={1, 2}), f(a=1)]"),
    ("pythonic", "[f(a=1), f(a={1, 2})]"),
    ("pythonic", "[f(a=1), unknown(a=1)]"),
    ("pythonic", "[" * 500 + "]" * 500),
    ("pythonic", "[f(a=b'x')]"),
    ("pythonic", "[]"),
]


@pytest.mark.parametrize(("name", "text", "content", "calls"), SHAPES)
def test_shapes(name: str, text: str, content: str, calls: Calls) -> None:
    assert_parsed(name, text, content, calls)


@pytest.mark.parametrize(("name", "text"), BROKEN_OFF)
def test_calls_that_are_broken_off(name: str, text: str) -> None:
    """vLLM#42210: none of them looks like a complete one, and nothing of them is content that comes behind it."""
    assert_parsed(name, text, text, [])
    for parts in ([text], list(text)):
        parser = tools(name)
        events = [event for part in parts for event in parser.feed(part)] + parser.finish()
        arguments = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
        assert arguments and arguments in text.replace("\n", "\\n")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(arguments)
        [broken] = [place for place, event in enumerate(events) if isinstance(event, CallBroken)]
        behind = "".join(event.text for event in events[broken + 1 :])  # type: ignore[union-attr]
        assert behind == ("\nDone." if "Done." in text else "")


@pytest.mark.parametrize(("name", "text", "content", "calls"), LEFT_OVER)
def test_what_is_left_of_calls(name: str, text: str, content: str, calls: Calls) -> None:
    assert_parsed(name, text, content, calls)


@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    assert_parsed(name, text, text, [])


def test_what_follows_a_broken_call() -> None:
    broken = '<tool_call>{"name": oops}}</tool_call>'
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert_parsed("hermes", f"{broken}\n{good}", broken, [("f", {})])
    begun = '<tool_call>{"name": "f", "arguments": {"a": 1, oops}}</tool_call>'
    assert_parsed("hermes", f"{begun}\n{good}", begun, [("f", {})])


PIECES = [
    *("<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": "x\\"}"}}', '{"name": "f", "parameters": {}}'),
    *("<|python_tag|>", "<|python_start|>", "<|python_end|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "; ", ";", ","),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    *("```json\n", "\n```", "function", "[f(a=1), get_weather(b='x')]", "f", "{}", '{"a": 1}', "{", "}", "[", "]"),
    *('"', "'", "\\", " ", "\n", "Text.", "<", "<tool", "<think>", "</think>", "</thi", "é", "("),
    *(text for _, text, *_ in [*SHAPES, *BROKEN_OFF, *LEFT_OVER]),
    *('{"name": "f", "arguments": {"a": 1, ', '"b": ', f'"{LONG}', '"]}', "\\u12", ": ", "[1, ", "null", "-1.5e3"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=400, deadline=None)
@given(text=TEXTS, places=st.lists(st.integers(0, 500), max_size=20))
def test_any_cut_gives_the_same_calls(name: str, text: str, places: list[int]) -> None:
    whole = parse(tools(name), [text])
    assert parse(tools(name), cut(text, places)) == whole == parse(tools(name), list(text))
    assert all(isinstance(json.loads(call.arguments), dict) for call in whole.calls)
    assert whole.calls or whole.content.rstrip() == text.rstrip()


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, places=st.lists(st.integers(0, 500), max_size=20), inside=st.booleans())
def test_any_cut_gives_the_same_reasoning(text: str, places: list[int], inside: bool) -> None:
    def answer(parts: list[str]) -> ParsedAnswer:
        return parse(AnswerParser(ReasoningParser(inside), partial(tools, "hermes")), parts)

    whole = answer([text])
    assert answer(cut(text, places)) == whole == answer(list(text))
    if not inside and not text.lstrip().startswith("<think>"):
        assert whole == parse(tools("hermes"), [text])


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=100, deadline=None)
@given(text=st.text("ab <tool_cal｜[T.", max_size=60))
def test_no_more_is_held_back_than_may_be_a_call(name: str, text: str) -> None:
    parser = PARSERS[name](NAMES)
    out = ""
    for character in text:
        out += "".join(event.text for event in parser.feed(character))  # type: ignore[union-attr]
    held = text[len(out) :].lstrip()
    assert text.startswith(out)
    assert not held or held[0] == parser.bare or any(marker.startswith(held) for marker in parser.markers)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=99),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.sampled_from([None, 0, 3]), st.booleans(), st.data())
def test_arguments_are_whole_or_none(value: Any, indent: int | None, ascii: bool, data: Any) -> None:
    arguments = json.dumps(value, indent=indent, ensure_ascii=ascii)
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    [call] = parse(tools("hermes"), [text]).calls
    assert call.arguments == arguments
    end = data.draw(st.integers(0, len(text)))
    assert [call.arguments for call in parse(tools("hermes"), list(text[:end])).calls] in ([], [arguments])


def test_arguments_come_as_they_are_written() -> None:
    parser = tools("hermes")

    def pieces(part: str) -> list[str]:
        return [event.name if isinstance(event, CallStart) else event.text for event in parser.feed(part)]

    assert pieces("Hi <") == ["Hi"] and pieces("b> <tool") == [" <b>"]
    assert pieces('_call>{"name": "f", "arguments": {"a"') == []
    assert pieces(": tru") == [] and pieces('e, "b":') == ["f", '{"a": true']
    assert pieces(' "short') == [] and pieces(', and"') == [', "b": "short, and"']
    assert pieces(f', "c": ["{LONG}') == [f', "c": ["{LONG}']
    assert pieces(" as it comes \\") == [" as it comes "] and pieces("n.") == ["\\n."]
    assert pieces('"]') == ['"]'] and pieces("}") == ["}"] and pieces("}</tool") == []


def test_a_long_call_takes_linear_time() -> None:
    parser = tools("hermes")
    answer = ParsedAnswer()
    answer.add(parser.feed('<tool_call>{"name": "f", "arguments": {"a": "'))
    for _ in range(20_000):
        answer.add(parser.feed("word \\n"))
    assert len(parser._reader.text) < 10_000  # type: ignore[attr-defined]
    answer.add(parser.feed('"}}'))
    assert len(answer.calls[0].arguments) == 20_000 * 7 + 9


REASONING = [
    # inside, text, reasoning, content
    (True, "hm\n</think>\n\nYes.", "hm", "Yes."),
    (True, "<think>\nhm, 1 < 2 \n\n ok</think>Yes. ", "hm, 1 < 2 \n\n ok", "Yes. "),
    (True, "never </thi", "never </thi", ""),
    (False, "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (False, "\n<think>hm</think> Yes.</think>", "hm", "Yes.</think>"),
    (False, " Yes <think>no</think>", "", " Yes <think>no</think>"),
    (False, "<thin", "", "<thin"),
]


@pytest.mark.parametrize(("inside", "text", "reasoning", "content"), REASONING)
def test_reasoning(inside: bool, text: str, reasoning: str, content: str) -> None:
    for parts in ([text], list(text)):
        answer = parse(AnswerParser(ReasoningParser(inside), None), parts)
        assert (answer.reasoning, answer.content) == (reasoning, content)


def test_other_marks() -> None:
    for parts in (["[THINK]hm</think>[/THINK]Yes."], list("[THINK]hm</think>[/THINK]Yes.")):
        answer = parse(AnswerParser(MistralReasoningParser(False), None), parts)
        assert (answer.reasoning, answer.content) == ("hm</think>", "Yes.")


def test_calls_behind_reasoning() -> None:
    text = 'hm <tool_call></think>\n<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'
    answer = parse(AnswerParser(ReasoningParser(True), partial(tools, "hermes")), [text])
    assert (answer.reasoning, answer.content, len(answer.calls)) == ("hm <tool_call>", "", 2)
    answer = parse(AnswerParser(ReasoningParser(True), partial(tools, "hermes"), parallel=False), [text])
    assert [call.name for call in answer.calls] == ["f"]


TEMPLATES = [
    ('Respond {"name": function name, "parameters": dictionary of argument name and its value}', "llama3_json"),
    ("{{- '<|python_tag|>' }}", "llama3_json"),
    ("Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]\\n", "pythonic"),
    ("Respond in the format [func_name1(params_name1=params_value1, params_name2=params_value2...)]", "pythonic"),
    ('{{- "[TOOL_CALLS] [" }}', "mistral"),
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>", "deepseek_v3"),
    ('<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>', "hermes"),
    ("<tool_call>\\n<function=example_function_name>", None),
    ("<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>", None),
    ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
]


def chosen_by(template: str) -> tuple[str | None, str | None]:
    """The parsers of calls and of reasoning."""
    found = [chosen("auto", registered, template) for registered in (tool_parsers(), reasoning_parsers())]
    return found[0] and found[0].name, found[1] and found[1].name


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_the_template_tells_the_format(template: str, name: str | None) -> None:
    assert chosen_by(template) == (name, None)


@pytest.mark.parametrize(("template", "name"), [("<think>", "qwen3"), ("x</think>", "qwen3"), ("[THINK]", "mistral")])
def test_the_template_tells_the_marks(template: str, name: str) -> None:
    assert chosen_by(template) == (None, name)


@pytest.mark.parametrize(("folder", "thinks"), [("qwen2.5", False), ("qwq-32b", True)])
def test_real_templates(shared_data: Path, folder: str, thinks: bool) -> None:
    config = json.loads((shared_data / folder / "tokenizer_config.json").read_text())
    assert chosen_by(config["chat_template"]) == ("hermes", "qwen3" if thinks else None)


def test_names_of_parsers() -> None:
    for name in ("auto", "none", *PARSERS):
        check_parsers(ServerConfig(tool_call_parser=name))
    with pytest.raises(ConfigError, match="xml is not installed; there are auto, none, deepseek_v3, h"):
        check_parsers(ServerConfig(tool_call_parser="xml"))
    with pytest.raises(
        ConfigError, match="--reasoning-parser xml is not installed; there are auto, none, deepseek_r1, mistral, qwen3"
    ):
        check_parsers(ServerConfig(reasoning_parser="xml"))
