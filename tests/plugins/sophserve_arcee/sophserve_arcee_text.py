"""Tool calls as `<function=NAME>{"argument": 1}</function>`, and reasoning between `<thought>` and `</thought>`."""

from __future__ import annotations

from sophserve.plugins import Register, hookimpl
from sophserve.text.reader import Reader, Reading
from sophserve.text.reasoning import ReasoningParser
from sophserve.text.tool_grammar import ToolGrammar
from sophserve.text.tool_parser import ToolParser


class FunctionTagParser(ToolParser):
    """Each call in an element of its own."""

    markers = ("<function=",)
    inner = ("</function>",)
    signs = ("<function=",)

    def _read(self, reader: Reader) -> Reading[None]:
        yield from reader.need("<function=")
        name = yield from reader.word()
        yield from reader.need(">")
        yield from self._arguments(name)
        yield from self._skip("</function>")

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        """The elements, with nothing between."""
        begin, end = writer.opening("<function="), writer.mark("</function>")
        call = writer.each(lambda name, arguments: f'{begin} "{name}" ">" {arguments} {end}')
        return writer.repeated(call, "", several)


class ThoughtParser(ReasoningParser):
    """Other marks."""

    opening = "<thought>"
    closing = "</thought>"


@hookimpl
def register_tool_parsers(register: Register) -> None:
    """Add the elements."""
    register("function_tag", FunctionTagParser)


@hookimpl
def register_reasoning_parsers(register: Register) -> None:
    """Add the marks."""
    register("thought", ThoughtParser)
