"""The formats in which models write tool calls, and which of them a chat template shows."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from sophserve.text.json_stream import to_json
from sophserve.text.reader import NotACallError, Reader, Reading
from sophserve.text.tool_parser import ToolParser


class HermesParser(ToolParser):
    """`<tool_call>{"name": "f", "arguments": {}}</tool_call>`, as Hermes, Qwen2.5 and Qwen3 write it."""

    markers = ("<tool_call>",)
    inner = ("</tool_call>",)

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.need("<tool_call>")
        yield from reader.space()
        yield from self._object()
        yield from self._skip("</tool_call>")


class Llama3JsonParser(ToolParser):
    """`{"name": "f", "parameters": {}}`, several of them with `;` between; possibly behind `<|python_tag|>`."""

    markers = ("<|python_tag|>",)
    bare = "{"

    def _read(self, reader: Reader) -> Reading[None]:
        marked = yield from reader.take("<|python_tag|>")
        yield from reader.space()
        yield from self._object(known=not marked)
        yield from self._skip(";")


class MistralParser(ToolParser):
    """`[TOOL_CALLS][{"name": "f", "arguments": {}}]`, or `[TOOL_CALLS]f[ARGS]{}` for each call."""

    markers = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")

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


class DeepSeekV3Parser(ToolParser):
    """`<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>` (V3.1). Before that (V3, R1) `function` stood for
    the name, and the name and the arguments, fenced as a block of JSON, behind it."""

    markers = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    inner = ("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")

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
        yield from self._skip(*["```"] * fenced, "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")


class PythonicParser(ToolParser):
    """`[f(a=1), g(b="x")]`, as Llama 3.2 and 4 write it; possibly within `<|python_start|>` and `<|python_end|>`. All
    calls of a list are given out when it is complete."""

    markers = ("<|python_start|>",)
    inner = ("<|python_end|>",)
    bare = "["

    def _read(self, reader: Reader) -> Reading[None]:
        marked = yield from reader.take("<|python_start|>")
        yield from reader.space()
        calls = _python_calls((yield from reader.brackets()))
        if not calls or (not marked and any(name not in self._names for name, _ in calls)):
            raise NotACallError
        for name, arguments in calls:
            self._call(name, arguments)
        yield from self._skip("<|python_end|>")


def _python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about unknown escapes in strings
            tree = ast.parse(text, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else []
        return [_python_call(call) for call in calls]
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise NotACallError from None


def _python_call(call: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(call, ast.Call) or call.args:
        raise NotACallError
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords if keyword.arg}
    to_json(arguments)  # all calls or none: a later one that cannot be given out must be found now
    if len(arguments) < len(call.keywords):
        raise NotACallError
    return ast.unparse(call.func), arguments


def _value(node: ast.expr) -> Any:
    """A literal; JSON's names for true, false and null are forgiven."""
    match node:
        case ast.Name(id="true" | "false" | "null" as name):
            return {"true": True, "false": False, "null": None}[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key or node): _value(part) for key, part in zip(keys, values, strict=True)}
    return ast.literal_eval(node)


TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "deepseek_v3": DeepSeekV3Parser,
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
}

# What a chat template of each format holds, the most telling first.
_SIGNS = (
    ("<｜tool▁call▁begin｜>", "deepseek_v3"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", None),  # calls in XML, partly with the markers of Hermes
    ("<arg_key>", None),
    ("<tool_call>", "hermes"),
    ("<|python_start|>", "pythonic"),
    ("[func_name1(", "pythonic"),
    ('"parameters": dictionary', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
)


def tool_parser_of(template: str) -> str | None:
    """The name of the parser for what a chat template shows the model; None for no format known here."""
    return next((name for sign, name in _SIGNS if sign in template), None)
