"""What a model thinks between `<think>` and `</think>` before it answers."""

from __future__ import annotations

from sophserve.text.answer import ContentDelta, Event, ReasoningDelta
from sophserve.text.reader import Reader, Reading

OPEN, CLOSE = "<think>", "</think>"


class ReasoningParser:
    """Splits an answer at these marks. inside: it begins within the reasoning. Whitespace at the marks is left out."""

    def __init__(self, inside: bool) -> None:
        self._inside = inside
        self._reader = Reader()
        self._events: list[Event] = []
        self._run = self._parse()

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
        yield from reader.space()
        if (yield from reader.take(OPEN)) or self._inside:
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
        yield from reader.space()
        while True:
            before, closed, after = self._rest().partition(CLOSE)
            held = 0 if closed or reader.ended else _beginning_of_close(before)
            text = before[: len(before) - held].rstrip()
            if text:
                self._events.append(ReasoningDelta(text))
            reader.text = after if closed else before[len(text) :]
            reader.position = 0
            if closed or reader.ended:
                reader.text = after
                return
            yield

    def _rest(self) -> str:
        reader = self._reader
        text, reader.text, reader.position = reader.text[reader.position :], "", 0
        return text


def _beginning_of_close(text: str) -> int:
    """How many characters at the end may become the closing mark."""
    return next((size for size in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:size])), 0)


def reasons(template: str) -> bool:
    """Whether a chat template knows of reasoning."""
    return OPEN in template or CLOSE in template
