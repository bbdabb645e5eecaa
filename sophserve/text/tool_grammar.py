"""Grammars that leave a model nothing but tool calls, in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from sophserve.text.reasoning import CLOSE, OPEN
from sophserve.text.tokenizer import Tokenizer

Schema = dict[str, Any]
# Models write calls on one line, as their templates show them.
_LAYOUT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
# What a schema may say beside its properties without changing which calls in Python fit it.
_PLAIN = frozenset({"type", "properties", "required", "additionalProperties", "description", "title", "$schema"})
_DEFINITIONS = ("$defs", "definitions")


class ToolGrammar:
    """Writes the grammar of one format. template: the chat template, which tells variants of a format apart. tools:
    the schemas of the arguments by the tools' names."""

    def __init__(self, parser: str, template: str, tokenizer: Tokenizer, tools: dict[str, Schema]) -> None:
        self._parser = parser
        self._template = template
        self._tokenizer = tokenizer
        self._tools = tools
        self._rules: list[str] = []

    def text(self, several: bool, may_think: bool) -> str:
        """The grammar of one call, or of at least one; may_think: with `<think>` and reasoning before it. Raises
        ValueError for a schema that the format has no grammar for."""
        calls = _FORMATS[self._parser](self, several)
        thought = f"({self._thought()})? " if may_think else ""
        return "\n".join([f"start: {thought}/[ \\n]{{0,4}}/ {calls}", *self._rules])

    def _thought(self) -> str:
        if self._tokenizer.special_id(CLOSE) is None:
            self._rules.append(f"thought[suffix={_quoted(CLOSE)}]: /(.|\\n)*/")
            return f"{self._mark(OPEN)} thought"
        return f"{self._mark(OPEN)} /(.|\\n)*/ {self._mark(CLOSE)}"

    def _mark(self, text: str) -> str:
        """A marker: one special token, or else its text."""
        token_id = self._tokenizer.special_id(text)
        return _quoted(text) if token_id is None else f"<[{token_id}]>"

    def _hermes(self, several: bool) -> str:
        begin, end = self._mark("<tool_call>"), self._mark("</tool_call>")
        call = f'{begin} "\\n" {self._objects("arguments")} "\\n" {end}'
        return self._repeated(call, "\n", several)

    def _llama3_json(self, several: bool) -> str:
        return self._repeated(self._objects("parameters"), "; ", several)

    def _mistral(self, several: bool) -> str:
        begin = self._mark("[TOOL_CALLS]")
        if "[ARGS]" not in self._template:
            return f'{begin} " "? "[" {self._repeated(self._objects("arguments"), ", ", several)} "]"'
        sep = self._mark("[ARGS]")
        call = self._each(lambda name, arguments: f"{begin} {_quoted(name)} {sep} {arguments}")
        return self._repeated(call, "", several)

    def _deepseek_v3(self, several: bool) -> str:
        begin, end = self._mark("<｜tool▁call▁begin｜>"), self._mark("<｜tool▁call▁end｜>")
        sep = self._mark("<｜tool▁sep｜>")
        if fenced := "```json" in self._template:
            head, behind, fence = f'"function" {sep}', _quoted("\n```json\n"), _quoted("\n```")
        else:
            head, behind, fence = "", sep, ""
        call = self._each(lambda name, arguments: f"{head} {_quoted(name)} {behind} {arguments} {fence}")
        calls = self._repeated(f"{begin} {call} {end}", "\n" * fenced, several)
        return f"{self._mark('<｜tool▁calls▁begin｜>')} {calls} {self._mark('<｜tool▁calls▁end｜>')}"

    def _pythonic(self, several: bool) -> str:
        calls = [
            f"{_quoted(name + '(')} {self._keywords(number, name, schema)} {_quoted(')')}"
            for number, (name, schema) in enumerate(self._tools.items())
        ]
        return f'"[" {self._repeated(f"({_either(calls)})", ", ", several)} "]"'

    def _keywords(self, number: int, name: str, schema: Schema) -> str:
        """Keyword arguments in the order of the schema, those that are not required possibly left out."""
        keys = [*name.split("."), *schema.get("properties", {})]
        if odd := [key for key in keys if not key.isidentifier() or iskeyword(key)]:
            raise ValueError(f"{name}: {odd[0]!r} is no name in Python, which this model's calls are written in")
        if further := schema.keys() - _PLAIN - set(_DEFINITIONS):
            raise ValueError(f"{name}: {', '.join(sorted(further))} cannot be kept to in this model's calls")
        definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
        required = schema.get("required", [])
        # first_N and later_N: what may stand from keyword N on, before and behind the first keyword.
        first = later = '""'
        for place, (key, value) in reversed(list(enumerate(schema.get("properties", {}).items()))):
            rule = f"t{number}_{place}"
            optional = "" if key in required else " | "
            keyword = f"{_quoted(key + '=')} {self._json(value if isinstance(value, bool) else value | definitions)}"
            self._rules.append(f"{rule}_key: {keyword}")
            self._rules.append(f"{rule}_first: {rule}_key {later}{optional and optional + first}")
            self._rules.append(f'{rule}_later: ", " {rule}_key {later}{optional and optional + later}')
            first, later = f"{rule}_first", f"{rule}_later"
        return first

    def _objects(self, key: str) -> str:
        """A call as one object, with its arguments under this key."""

        def call(name: str, arguments: str) -> str:
            opening = f'{{"name": {json.dumps(name)}, "{key}": '
            return f"{_quoted(opening)} {arguments} {_quoted('}')}"

        return self._each(call)

    def _each(self, call: Callable[[str, str], str]) -> str:
        """One of the tools, worded by call(name, rule of its arguments)."""
        return f"({_either([call(name, self._json(schema)) for name, schema in self._tools.items()])})"

    def _repeated(self, call: str, between: str, several: bool) -> str:
        self._rules.append(f"call: {call}")
        return f"call ({_quoted(between) if between else ''} call)*" if several else "call"

    def _json(self, schema: Schema | bool) -> str:
        self._rules.append(f"json_{len(self._rules)}: %json {_lark_json(schema)}")
        return f"json_{len(self._rules) - 1}"


def _lark_json(schema: Schema | bool) -> str:
    return json.dumps(schema if isinstance(schema, bool) else schema | _LAYOUT)


def _either(choices: list[str]) -> str:
    return " | ".join(choices)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_FORMATS: dict[str, Callable[[ToolGrammar, bool], str]] = {
    "deepseek_v3": ToolGrammar._deepseek_v3,
    "hermes": ToolGrammar._hermes,
    "llama3_json": ToolGrammar._llama3_json,
    "mistral": ToolGrammar._mistral,
    "pythonic": ToolGrammar._pythonic,
}
