"""Grammars of tool calls: they take what the parser of the same format reads, and nothing that a schema forbids."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sophserve.plugins import tool_parsers
from sophserve.text.answer_events import ArgumentsDelta, CallStart, ParsedAnswer
from sophserve.text.text_reader import Reader, Reading
from sophserve.text.tokenizer import Tokenizer
from sophserve.text.tool_grammar import ToolGrammar
from sophserve.text.tool_parser import ToolParser

llguidance = pytest.importorskip("llguidance")

PARSERS = {name: entry.value for name, entry in tool_parsers().items()}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/words"}, "c": {"type": "boolean"}},
    "required": ["b"],
    "additionalProperties": False,
    "$defs": {"words": {"type": "array", "items": {"enum": ["x", "y"]}}},
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: dict[str, dict[str, Any]] = {"f": SCHEMA, "g-z": NOTHING, "h": {"type": "object"}}
MARKERS = ["<tool_call>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>"]


def byte_tokenizer(special: bool) -> Tokenizer:
    """One token a byte, and where they are special one token a marker."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ["<eos>", *MARKERS * special]])
    return Tokenizer(backend, {"eos_token": "<eos>"}, {})


class Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]

    def __call__(self, text: bytes | str) -> list[int]:
        return [self.tokens.index(bytes([byte])) for byte in (text if isinstance(text, bytes) else text.encode())]


def writer(parser: str, template: str = "", special: bool = False, **more: Any) -> ToolGrammar:
    tools = {name.replace("-", "."): schema for name, schema in TOOLS.items()} if parser == "pythonic" else TOOLS
    return ToolGrammar(PARSERS[parser], template, byte_tokenizer(special), **{"tools": tools} | more)


class Grammar:
    def __init__(self, text: str, special: bool = False) -> None:
        self.text = text
        self.tokenizer = byte_tokenizer(special)
        tokens = llguidance.LLTokenizer(Vocabulary(self.tokenizer))
        grammar = llguidance.LLMatcher.grammar_from_lark(self.text)
        self.matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
        assert not self.matcher.is_error(), (self.text, self.matcher.get_error())

    def takes(self, text: str) -> bool:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        self.matcher.reset()
        taken = self.matcher.try_consume_tokens(ids)
        return taken == len(ids) and self.matcher.is_accepting()


V3_TEMPLATE = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json"
V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
FORMATS = [
    # parser, template, one call, between calls, all calls
    ("hermes", "", '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>', "\n", "{}"),
    ("llama3_json", "", '{{"name": "{}", "parameters": {}}}', "; ", "{}"),
    ("mistral", "", '{{"name": "{}", "arguments": {}}}', ", ", "[TOOL_CALLS] [{}]"),
    ("mistral", "[ARGS]", "[TOOL_CALLS]{}[ARGS]{}", "", "{}"),
    ("deepseek_v3", V3_TEMPLATE, V3, "\n", "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"),
    ("deepseek_v3", "", V31, "", "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"),
]
GOOD = [("f", '{"a": 1, "b": ["x", "y"]}'), ("f", '{"b": []}'), ("g-z", "{}"), ("h", '{"any": "é"}')]
BAD = [("f", "{}"), ("f", '{"b": ["z"]}'), ("g-z", '{"a": 1}'), ("other", "{}"), ("h", "1")]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("parser", "template", "call", "between", "calls"), FORMATS)
def test_formats(parser: str, template: str, call: str, between: str, calls: str, special: bool) -> None:
    one = Grammar(writer(parser, template, special).demanded(several=False), special)
    several = Grammar(writer(parser, template, special).demanded(several=True), special)
    for name, arguments in GOOD:
        assert one.takes(calls.format(call.format(name, arguments))), (name, arguments, one.text)
    for name, arguments in BAD:
        assert not one.takes(calls.format(call.format(name, arguments)))
    text = calls.format(between.join(itertools.starmap(call.format, GOOD)))
    assert several.takes(text) and not one.takes(text)
    assert several.takes(f"\n\n{text}") and not several.takes("Text.") and not several.takes(f"Text.{text}")
    answer = ParsedAnswer()
    read = PARSERS[parser](TOOLS)
    answer.add([*read.feed(text), *read.finish()])
    assert [(found.name, found.arguments) for found in answer.calls] == GOOD and not answer.content


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("parser", "template", "call", "between", "calls"), FORMATS)
def test_calls_within_free_text(parser: str, template: str, call: str, between: str, calls: str, special: bool) -> None:
    several = Grammar(writer(parser, template, special, strict=["f"]).free(several=True), special)
    one = Grammar(writer(parser, template, special, strict=["f"]).free(several=False), special)
    for text in ("", "Text, <b>{ok}</b> [1].\n", "x" * 50):
        assert several.takes(text) and one.takes(text)
    lead = "" if PARSERS[parser].bare else "Let me see.\n"
    for name, arguments in [*GOOD, ("g-z", '{"a": 1}')]:
        text = lead + calls.format(call.format(name, arguments))
        assert several.takes(text) and one.takes(text), (text, several.text)
    for name, arguments in (("f", "{}"), ("f", '{"b": ["z"]}'), ("other", "{}"), ("h", "1")):
        assert not several.takes(lead + calls.format(call.format(name, arguments)))
    text = lead + calls.format(between.join(itertools.starmap(call.format, GOOD)))
    assert several.takes(text) and not one.takes(text)
    if not PARSERS[parser].bare:
        assert several.takes(f"{text}\nAnd {text}. Done.")


@pytest.mark.parametrize(
    ("parser", "call"),
    [
        ("pythonic", "[h(), g.z()]"),
        ("hermes", '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>'),
        ("llama3_json", '{"name": "h", "parameters": {}}; {"name": "g-z", "parameters": {}}'),
    ],
)
def test_calls_or_json(parser: str, call: str) -> None:
    grammar = Grammar(writer(parser).or_json(True, {"type": "array", "items": {"const": 7}}))
    assert grammar.takes("[7, 7]")
    assert not grammar.takes("[8]") and not grammar.takes("Text.") and not grammar.takes("[7] [7]")
    assert grammar.takes(call) and not grammar.takes(f"[7]{call}")


def test_bare_calls_within_free_text() -> None:
    llama = Grammar(writer("llama3_json", strict=["f"]).free(several=True))
    assert llama.takes('See: <|python_tag|>{"name": "g-z", "parameters": {}}')
    assert not llama.takes('See: <|python_tag|>{"name": "f", "parameters": {}}')
    assert llama.takes('See: {"name": "f"}') and not llama.takes(' {"name": "Bob"}')
    python = Grammar(writer("pythonic", strict=["f"]).free(several=False))
    assert python.takes("[g.z()]") and python.takes("See [1].") and not python.takes("[1]")
    assert not python.takes('[f(b=["z"])]') and python.takes('<|python_start|>[f(b=["x"])]')


class WithoutGrammar(ToolParser):
    markers = ("<call>",)

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.need("<call>")
        yield from self._object()


def test_a_format_without_grammar() -> None:
    grammar = ToolGrammar(WithoutGrammar, "", byte_tokenizer(False), TOOLS)
    with pytest.raises(ValueError, match="has no grammar"):
        grammar.demanded(several=True)
    [start, arguments] = WithoutGrammar(TOOLS).feed('<call>{"name": "f", "arguments": {}}')
    assert isinstance(start, CallStart) and isinstance(arguments, ArgumentsDelta)


def test_pythonic() -> None:
    one = Grammar(writer("pythonic").demanded(several=False))
    for text in ('f(a=1, b=["x"], c=true)', "f(b=[])", 'f(b=["y"], c=false)', "f(a=-3, b=[])", "g.z()", "h()"):
        assert one.takes(f"[{text}]"), text
    for text in ("f()", "f(a=1)", "f(b=[], a=1)", "f(a=1 b=[])", "f(, b=[])", "g.z(a=1)", 'f(b=["z"])', "other()"):
        assert not one.takes(f"[{text}]"), text
    several = Grammar(writer("pythonic").demanded(several=True))
    assert several.takes("[f(b=[]), h(), h()]") and not one.takes("[f(b=[]), h()]")


@pytest.mark.parametrize(
    ("name", "schema", "words"),
    [
        ("f", {"anyOf": [{"required": ["a"]}], "properties": {"a": {}}}, "f: anyOf cannot be kept to"),
        ("f", {"properties": {"my-key": {}}}, "'my-key' is no name"),
        ("f", {"properties": {"from": {}}}, "'from' is no name"),
        ("f-g", {}, "'f-g' is no name"),
    ],
)
def test_what_python_cannot_say(name: str, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        writer("pythonic", tools={name: schema}).demanded(several=True)


def test_names_and_schemas_are_only_text() -> None:
    tools = {"f": {"type": "object", "description": '"\n%json // # /*', "properties": {'q"\n': {"const": "</x>\n"}}}}
    for parser in PARSERS.keys() - {"pythonic"}:
        grammar = writer(parser, tools=tools).demanded(several=True)
        tokens = llguidance.LLTokenizer("byte")
        matcher = llguidance.LLMatcher(tokens, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)
        assert not matcher.is_error(), (json.dumps(grammar), matcher.get_error())
