"""What a model thinks before it answers."""

from __future__ import annotations

from typing import ClassVar

from sophserve.plugins import Register, hookimpl
from sophserve.text.answer_events import ContentDelta, Event, ReasoningDelta
from sophserve.text.text_reader import Reader, Reading


class ReasoningParser:
    """Splits an answer at the marks `opening` and `closing`. inside: it begins within the reasoning. Whitespace at the
    marks is left out. begun: the prompt ends with the first words of the reasoning, which go on as they stand. closed:
    the reasoning has ended. always: the answer begins within it even where the prompt does not say so. automatic:
    whether a chat template with the marks chooses this parser."""

    opening: ClassVar[str] = "<think>"
    closing: ClassVar[str] = "</think>"
    always: ClassVar[bool] = False
    automatic: ClassVar[bool] = True

    def __init__(self, inside: bool, begun: bool = False) -> None:
        self.closed = False
        self._inside = inside
        self._begun = begun
        self._reader = Reader()
        self._events: list[Event] = []
        self._run = self._parse()

    @classmethod
    def reads(cls, template: str) -> bool:
        """Whether a chat template knows of this reasoning."""
        return cls.automatic and (cls.opening in template or cls.closing in template)

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""
        self._reader.text += text
        return self._advance()

    def finish(self) -> list[Event]:
        """The rest. No feed may follow."""
        self._reader.ended = True
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._run, None)
        events, self._events = self._events, []
        return events

    def _parse(self) -> Reading[None]:
        reader = self._reader
        if not self._begun:
            yield from reader.space()
            self._inside |= yield from reader.take(self.opening)
        if self._inside:
            yield from self._think()
            yield from reader.space()
        else:
            reader.position = 0
        while True:
            if text := self._rest():
                self._events.append(ContentDelta(text))
            if reader.ended:
                return
            yield

    def _think(self) -> Reading[None]:
        reader = self._reader
        if not self._begun:
            yield from reader.space()
        while True:
            before, mark, after = self._rest().partition(self.closing)
            self.closed = bool(mark)
            held = 0 if mark or reader.ended else self._beginning_of_closing(before)
            text = before[: len(before) - held].rstrip()
            if text:
                self._events.append(ReasoningDelta(text))
            reader.text = after if mark else before[len(text) :]
            reader.position = 0
            if mark or reader.ended:
                reader.text = after
                return
            yield

    def _rest(self) -> str:
        reader = self._reader
        text, reader.text, reader.position = reader.text[reader.position :], "", 0
        return text

    def _beginning_of_closing(self, text: str) -> int:
        """How many characters at the end may become the closing mark."""
        sizes = range(len(self.closing) - 1, 0, -1)
        return next((size for size in sizes if text.endswith(self.closing[:size])), 0)


class DeepSeekR1Parser(ReasoningParser):
    """Of models whose answers begin within their reasoning, and may leave out the opening mark."""

    always = True
    automatic = False


class MistralReasoningParser(ReasoningParser):
    """Magistral's."""

    opening = "[THINK]"
    closing = "[/THINK]"


@hookimpl
def register_reasoning_parsers(register: Register) -> None:
    register("deepseek_r1", DeepSeekR1Parser)
    register("mistral", MistralReasoningParser)
    register("qwen3", ReasoningParser)
