"""Tool calls in a text that is being generated: what all formats have in common.

A call is given out once it is complete, so that its arguments are always valid JSON; what turns out to be no call is
content. A format says what may begin a call, and reads one.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, NoReturn

from sophserve.text.answer import ArgumentsDelta, CallStart, ContentDelta, Event
from sophserve.text.reader import NotACallError, Reader, Reading


class ToolParser(ABC):
    """Finds the calls in one answer. names: the tools that there are.

    markers: texts that begin a call anywhere. inner: further texts of the format that may be special tokens. bare: a
    character that begins a call at the beginning of the answer and behind another call, if the name is that of a tool.
    Whitespace around calls belongs to them.
    """

    markers: ClassVar[tuple[str, ...]]
    inner: ClassVar[tuple[str, ...]] = ()
    bare: ClassVar[str] = ""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._reader = Reader()
        self._given = 0  # up to where the text has been given out
        self._calls = 0
        self._bare_possible = bool(self.bare)
        self._events: list[Event] = []
        self._marker = re.compile("|".join(map(re.escape, self.markers)))
        self._longest = max(map(len, self.markers))
        self._run = self._parse()

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""
        self._reader.text += text
        return self._advance()

    def finish(self) -> list[Event]:
        """The rest. No feed may follow."""
        self._reader.ended = True
        return self._advance()

    @abstractmethod
    def _read(self, reader: Reader) -> Reading[None]:
        """Read calls from where one may begin, and hand each to `_call`. Raises NotACallError."""

    def _call(self, name: Any, arguments: Any, known: bool = False) -> None:
        """Give out a complete call. known: its name must be that of a tool."""
        arguments = {} if arguments is None else arguments
        if isinstance(arguments, str):
            arguments = parse_json(arguments)
        if not name or not isinstance(name, str) or not name.isprintable() or not isinstance(arguments, dict):
            raise NotACallError
        if known and name not in self._names:
            raise NotACallError
        text = to_json(arguments)
        self._events += [CallStart(self._calls, name), ArgumentsDelta(self._calls, text)]
        self._calls += 1
        self._given = self._reader.position
        self._bare_possible = bool(self.bare)

    def _skip(self, *literals: str) -> Reading[None]:
        """Read what may stand behind a call."""
        reader = self._reader
        for literal in literals:
            yield from reader.space()
            if (yield from reader.take(literal)):
                self._given = reader.position
            elif reader.ended and literal.startswith(reader.text[reader.position :]):
                self._given = reader.position = len(reader.text)
            else:
                reader.position = self._given

    def _advance(self) -> list[Event]:
        next(self._run, None)
        events, self._events = self._events, []
        return events

    def _parse(self) -> Reading[None]:
        reader = self._reader
        while (yield from self._find()):
            start, calls = reader.position, self._calls
            try:
                yield from self._read(reader)
            except NotACallError:
                if reader.ended:
                    self._give(len(reader.text))
                    return
                self._bare_possible = False
                # What a call behind this one begins with may stand right here; this one must not be tried again.
                reader.position = self._given if self._calls > calls else start + 1

    def _find(self) -> Reading[bool]:
        """Give out content up to where a call may begin; False for the end of the text."""
        reader = self._reader
        while True:
            found = self._marker.search(reader.text, reader.position)
            end = found.start() if found else self._held()
            content = reader.text[self._given : end].rstrip()
            if self._bare_possible and reader.text[self._given :].lstrip().startswith(self.bare):
                reader.position = reader.text.index(self.bare, self._given)
                return True
            if content:
                self._give(self._given + len(content))
                self._bare_possible = False
            if found:
                reader.position = found.start()
                return True
            if reader.ended:
                if not self._calls or reader.text[self._given :].strip():
                    self._give(len(reader.text))
                return False
            reader.position = max(reader.position, end)
            self._forget()
            yield

    def _held(self) -> int:
        """Where the last part begins that may become a marker."""
        reader = self._reader
        for size in range(min(self._longest - 1, len(reader.text) - reader.position), 0, -1):
            if any(marker.startswith(reader.text[-size:]) for marker in self.markers):
                return len(reader.text) - size
        return len(reader.text)

    def _give(self, end: int) -> None:
        if end > self._given:
            self._events.append(ContentDelta(self._reader.text[self._given : end]))
            self._given = end

    def _forget(self) -> None:
        """Keep only the text that is still needed."""
        reader = self._reader
        reader.text = reader.text[self._given :]
        reader.position -= self._given
        self._given = 0


def parse_json(text: str) -> Any:
    """A value in JSON; line breaks within strings are forgiven. Raises NotACallError."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotACallError from None


def json_object(text: str) -> dict[str, Any]:
    """An object in JSON. Raises NotACallError."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise NotACallError
    return value


def to_json(value: Any) -> str:
    """JSON of a value. Raises NotACallError for what JSON has not."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise NotACallError from None
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
