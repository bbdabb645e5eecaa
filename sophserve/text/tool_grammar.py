"""Grammars of answers with tool calls, in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Protocol

from sophserve.text.tokenizer import Tokenizer

Schema = dict[str, Any]
# Models write calls on one line, as their templates show them.
_LAYOUT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ANYTHING = r"/(.|\n)*/"
_BLANK = r"/[ \n]{0,4}/"


class CallFormat(Protocol):
    """What has to be known of the format of calls; see sophserve.text.tool_parser.ToolParser."""

    markers: ClassVar[tuple[str, ...]]
    bare: ClassVar[str]

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        """The expression for one call, or for at least one."""


class ToolGrammar:
    """Writes the grammar of one answer, with the calls as the format has them. template: the chat template, which tells
    variants of a format apart. tools: the schemas of the arguments by the tools' names. strict: the names of those that
    must fit their schema, where others are any object; None for all."""

    def __init__(
        self,
        parser: type[CallFormat],
        template: str,
        tokenizer: Tokenizer,
        tools: dict[str, Schema],
        strict: Collection[str] | None = None,
    ) -> None:
        self.template = template
        self.tools = tools
        self._parser = parser
        self._tokenizer = tokenizer
        self._strict = tools.keys() if strict is None else strict
        self._rules: list[str] = []
        self._free = False

    def demanded(self, several: bool) -> str:
        """Nothing but one call, or at least one. Raises ValueError for a schema that the format has no grammar for."""
        return self._text(f"{_BLANK} {self._calls(several)}")

    def or_json(self, several: bool, schema: Schema | bool) -> str:
        """The same, or else a value that fits a schema."""
        return self._text(f"{_BLANK} ({self._calls(several)} | {self.json(schema)})")

    def free(self, several: bool) -> str:
        """Any text; where it begins to be a call it must go on as one. Where calls are not marked, a text that begins
        like one is one."""
        text = _ANYTHING
        if bare := self._parser.bare:
            text = rf"/([ \n]*[^{_regex(bare)} \n](.|\n)*)?/"
        self._rules.append(f"TEXT: {text}")
        if bare:
            calls = self.rule("calls", self._calls(several))
            return self._text(f"({_BLANK} {calls} | ({self._text_up_to(self._parser.markers[0])} {calls})? TEXT)")
        self._free = True
        calls = self.rule("calls", self._calls(several))
        return self._text(f"({calls})* TEXT" if several else f"({calls} | TEXT)")

    def opening(self, marker: str) -> str:
        """The marker that a call begins with, and the text before it, where there may be some."""
        return self._text_up_to(marker) if self._free else self.mark(marker)

    def mark(self, text: str) -> str:
        """A marker: one special token, or else its text."""
        token_id = self._tokenizer.special_id(text)
        return quoted(text) if token_id is None else f"<[{token_id}]>"

    def objects(self, key: str) -> str:
        """One of the tools, called by an object with its arguments under this key."""

        def call(name: str, arguments: str) -> str:
            beginning = f'{{"name": {json.dumps(name)}, "{key}": '
            return f"{quoted(beginning)} {arguments} {quoted('}')}"

        return self.each(call)

    def each(self, call: Callable[[str, str], str]) -> str:
        """One of the tools, worded by call(name, rule of its arguments)."""
        return either([call(name, self._arguments(name)) for name in self.tools])

    def repeated(self, call: str, between: str, several: bool) -> str:
        """One call, or if several at least one, with that text between."""
        rule = self.rule("call", call)
        return f"{rule} ({quoted(between) if between else ''} {rule})*" if several else rule

    def json(self, schema: Schema | bool) -> str:
        """A value that fits a schema."""
        return self.rule("json", f"%json {json.dumps(schema if isinstance(schema, bool) else schema | _LAYOUT)}")

    def rule(self, name: str, body: str) -> str:
        """A new rule; returns what it is called, which begins with name."""
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def keeps(self, name: str) -> bool:
        """Whether calls of this tool must fit its schema."""
        return name in self._strict

    def _arguments(self, name: str) -> str:
        return self.json(self.tools[name] if self.keeps(name) else {"type": "object"})

    def _calls(self, several: bool) -> str:
        return self._parser.grammar(self, several)

    def _text(self, answer: str) -> str:
        return "\n".join([f"start: {answer}", *self._rules])

    def _text_up_to(self, marker: str) -> str:
        if self._tokenizer.special_id(marker) is not None:
            return f"TEXT {self.mark(marker)}"
        self._rules.append(f"text_{len(self._rules)}[lazy]: TEXT {quoted(marker)}")
        return f"text_{len(self._rules) - 1}"


def either(choices: list[str]) -> str:
    """One of these."""
    return f"({' | '.join(choices)})"


def quoted(text: str) -> str:
    """Exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)
