"""The formats in which models write tool calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Any

from sophserve.plugins import Register, hookimpl
from sophserve.text import exact_json, python_calls
from sophserve.text.text_reader import NotACallError, Reader, Reading
from sophserve.text.tool_grammar import ToolGrammar
from sophserve.text.tool_parser import ToolParser


class HermesParser(ToolParser):
    """`<tool_call>{"name": "f", "arguments": {}}</tool_call>`, as Hermes, Qwen2.5 and Qwen3 write it."""

    markers = ("<tool_call>",)
    inner = ends = ("</tool_call>",)
    signs = ("<tool_call>",)
    other_signs = ("<function=", "<arg_key>", "[TOOL_CALLS]")  # the first two: calls in XML between the same markers

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.need("<tool_call>")
        yield from reader.space()
        yield from self._object()
        yield from self._skip(*self.ends)

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        begin, end = writer.opening("<tool_call>"), writer.mark("</tool_call>")
        return writer.repeated(f'{begin} "\\n" {writer.objects("arguments")} "\\n" {end}', "\n", several)


class Llama3JsonParser(ToolParser):
    """`{"name": "f", "parameters": {}}`, several of them with `;` between; possibly behind `<|python_tag|>`."""

    markers = ("<|python_tag|>",)
    bare = "{"
    signs = ('"parameters": dictionary', "<|python_tag|>")
    other_signs = ("<|python_start|>", "[func_name1(")

    def _read(self, reader: Reader) -> Reading[None]:
        marked = yield from reader.take("<|python_tag|>")
        yield from reader.space()
        yield from self._object(known=not marked)
        yield from self._skip(";")

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        return writer.repeated(writer.objects("parameters"), "; ", several)


class MistralParser(ToolParser):
    """`[TOOL_CALLS][{"name": "f", "arguments": {}}]`, or `[TOOL_CALLS]f[ARGS]{}` for each call."""

    markers = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")
    signs = ("[TOOL_CALLS]",)

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.need("[TOOL_CALLS]")
        yield from reader.space()
        if (yield from reader.take("[")):
            yield from self._read_list(reader)
            return
        name = yield from reader.word()
        if (yield from reader.take("[CALL_ID]")):
            yield from reader.word()
        yield from reader.take("[ARGS]")
        yield from reader.space()
        yield from self._arguments(name)

    def _read_list(self, reader: Reader) -> Reading[None]:
        more = True
        while more:
            yield from reader.space()
            yield from self._object()
            yield from reader.space()
            more = yield from reader.take(",")
        yield from self._skip("]")

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        """One list, or each call behind a marker."""
        begin = writer.opening("[TOOL_CALLS]")
        if "[ARGS]" not in writer.template:
            return f'{begin} " "? "[" {writer.repeated(writer.objects("arguments"), ", ", several)} "]"'
        call = writer.each(lambda name, arguments: f'"{name}" {writer.mark("[ARGS]")} {arguments}')
        return writer.repeated(f"{begin} {call}", "", several)

    @classmethod
    def call_id(cls, prefix: str) -> str:
        """Nine letters and digits, as the templates want it."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class DeepSeekV3Parser(ToolParser):
    """`<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>` (V3.1). Before that (V3, R1) `function` stood for
    the name, and the name and the arguments, fenced as a block of JSON, behind it. Their chat templates show calls and
    results, and no tools."""

    markers = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    ends = ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
    inner = ("<｜tool▁sep｜>", *ends)
    signs = ("<｜tool▁call▁begin｜>",)

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.take("<｜tool▁calls▁begin｜>")
        yield from reader.space()
        yield from reader.need("<｜tool▁call▁begin｜>")
        name = yield from reader.word()
        yield from reader.need("<｜tool▁sep｜>")
        yield from reader.space()
        fenced = (yield from reader.peek()) != "{"
        if fenced:
            name = yield from reader.word()
            yield from reader.space()
            yield from reader.need("```json")
            yield from reader.space()
        yield from self._arguments(name)
        yield from self._skip(*["```"] * fenced, *self.ends)

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        """The calls between markers, and markers around them all."""
        sep = writer.mark("<｜tool▁sep｜>")
        if fenced := cls._fences(writer.template):
            head, behind, fence = f'"function" {sep}', r'"\n```json\n"', r'"\n```"'
        else:
            head, behind, fence = "", sep, ""
        begin, end = writer.mark("<｜tool▁call▁begin｜>"), writer.mark("<｜tool▁call▁end｜>")
        call = writer.each(lambda name, arguments: f'{head} "{name}" {behind} {arguments} {fence}')
        calls = writer.repeated(f"{begin} {call} {end}", "\n" * fenced, several)
        return f"{writer.opening('<｜tool▁calls▁begin｜>')} {calls} {writer.mark('<｜tool▁calls▁end｜>')}"

    @classmethod
    def introduction(cls, tools: Sequence[dict[str, Any]], template: str) -> str:
        """In the words that V3.1 was trained with, as its model card has them."""
        call = "tool_call_name<｜tool▁sep｜>tool_call_arguments"
        several = "For multiple tool calls, chain them directly without separators or spaces"
        if cls._fences(template):
            call = "function<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```"
            several = "For multiple tool calls, put each on a new line"
        functions = [function for tool in tools if isinstance(function := tool.get("function"), dict)]
        return "\n\n".join(
            [
                "## Tools\nYou have access to the following tools:",
                *map(_introduced, functions),
                "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
                f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>"
                "{additional_tool_calls}<｜tool▁calls▁end｜>",
                "Where:",
                "- `tool_call_name` must be an exact match to one of the available tools\n"
                "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
                f"- {several}",
            ]
        )

    @staticmethod
    def _fences(template: str) -> bool:
        return "```json" in template


class PythonicParser(ToolParser):
    """`[f(a=1), g(b="x")]`, as Llama 3.2 and 4 write it; possibly within `<|python_start|>` and `<|python_end|>`. All
    calls of a list are given out when it is complete."""

    markers = ("<|python_start|>",)
    inner = ends = ("<|python_end|>",)
    bare = "["
    signs = ("<|python_start|>", "[func_name1(")

    def _read(self, reader: Reader) -> Reading[None]:
        marked = yield from reader.take("<|python_start|>")
        yield from reader.space()
        calls = python_calls.read_calls((yield from reader.brackets()))
        if not calls or (not marked and any(name not in self._names for name, _ in calls)):
            raise NotACallError
        for name, arguments in calls:
            self._call(name, arguments)
        yield from self._skip(*self.ends)

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        return python_calls.grammar(writer, several)


def _introduced(function: dict[str, Any]) -> str:
    described = f"\nDescription: {function['description']}" if function.get("description") else ""
    parameters = exact_json.dumps(function.get("parameters") or {}, ensure_ascii=False)
    return f"### {function.get('name')}{described}\n\nParameters: {parameters}"


@hookimpl
def register_tool_parsers(register: Register) -> None:
    register("deepseek_v3", DeepSeekV3Parser)
    register("hermes", HermesParser)
    register("llama3_json", Llama3JsonParser)
    register("mistral", MistralParser)
    register("pythonic", PythonicParser)
