"""Tool calls in a text that is being generated: what all formats have in common.

A call begins with its first argument that is complete or long (JsonCopy), and its arguments are given out as they come.
They are always valid JSON: where the model breaks them off they are closed behind the last piece, and what it wrote
instead is content, like all that turns out to be no call. A format says what may begin a call, and reads one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar
from uuid import uuid4

from sophserve.text.answer_events import ArgumentsDelta, CallStart, ContentDelta, Event
from sophserve.text.json_stream import JsonCopy, json_value, parse_json, to_json
from sophserve.text.text_reader import NotACallError, Reader, Reading
from sophserve.text.tool_grammar import ToolGrammar

# Under these keys an object has the arguments of a call.
_ARGUMENTS = ("parameters", "arguments")
# Characters given out that are worth cutting off.
_MANY = 4096


class ToolParser(ABC):
    """Finds the calls in one answer. names: the tools that there are.

    markers: texts that begin a call anywhere. inner: further texts of the format that may be special tokens. bare: a
    character that begins a call at the beginning of the answer and behind another call, if the name is that of a tool.
    signs: what chat templates that show this format hold, one of them at least; other_signs: what only those of other
    formats hold. Whitespace around calls belongs to them.
    """

    markers: ClassVar[tuple[str, ...]]
    inner: ClassVar[tuple[str, ...]] = ()
    bare: ClassVar[str] = ""
    signs: ClassVar[tuple[str, ...]] = ()
    other_signs: ClassVar[tuple[str, ...]] = ()

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

    @classmethod
    def reads(cls, template: str) -> bool:
        """Whether a chat template shows the model this format."""
        return any(sign in template for sign in cls.signs) and not any(sign in template for sign in cls.other_signs)

    @classmethod
    def grammar(cls, writer: ToolGrammar, several: bool) -> str:
        """The expression for one call, or for at least one, with writer's help. Raises ValueError where there is none:
        such a model cannot be made to call a tool, but may."""
        raise ValueError("the format of this model's calls has no grammar")

    @classmethod
    def call_id(cls, prefix: str) -> str:
        """A new id of a call."""
        return f"{prefix}{uuid4().hex}"

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
        """Read calls from where one may begin: by `_object`, or `_arguments`, or `_call`. Raises NotACallError."""

    def _object(self, known: bool = False) -> Reading[None]:
        """Read a call that is an object with a name and the arguments. known: the name must be that of a tool, and
        arguments there."""
        reader = self._reader
        fields: dict[str, Any] = {}
        yield from reader.need("{")
        more = True
        while more:
            yield from reader.space()
            key = yield from self._key()
            if key in _ARGUMENTS and "name" in fields and (yield from reader.peek()) == "{":
                yield from self._arguments(fields["name"], known)
                yield from self._rest_of_object()
                return
            fields[key] = yield from json_value(reader)
            yield from reader.space()
            more = yield from reader.take(",")
        yield from reader.need("}")
        if known and not fields.keys() & set(_ARGUMENTS):
            raise NotACallError
        self._call(fields.get("name"), next((fields[key] for key in _ARGUMENTS if key in fields), None), known)

    def _key(self) -> Reading[str]:
        key = yield from json_value(self._reader)
        if not isinstance(key, str):
            raise NotACallError
        yield from self._reader.space()
        yield from self._reader.need(":")
        yield from self._reader.space()
        return key

    def _rest_of_object(self) -> Reading[None]:
        """Read what stands in an object behind the arguments. The call stands, whatever that is."""
        reader = self._reader
        try:
            yield from reader.space()
            while (yield from reader.take(",")):
                yield from reader.space()
                yield from self._key()
                yield from json_value(reader)
                yield from reader.space()
            yield from reader.need("}")
            self._given = reader.position
        except NotACallError:
            reader.position = self._given

    def _arguments(self, name: Any, known: bool = False) -> Reading[None]:
        """Read the arguments of a call, an object, and give them out as they come."""
        self._check(name, known)
        reader, index = self._reader, self._calls
        if (yield from reader.peek()) != "{":
            raise NotACallError

        def give(text: str) -> None:
            if self._calls == index:
                self._begin(name)
            self._add_arguments(text)
            self._given = reader.position
            if self._given > _MANY:
                self._forget()

        copy = JsonCopy(reader, give)
        try:
            yield from copy.read()
        except NotACallError:
            if self._calls > index:
                self._add_arguments(copy.closing)
            raise

    def _call(self, name: Any, arguments: Any, known: bool = False) -> None:
        """Give out a complete call."""
        arguments = {} if arguments is None else arguments
        if isinstance(arguments, str):
            arguments = parse_json(arguments)
        self._check(name, known)
        if not isinstance(arguments, dict):
            raise NotACallError
        text = to_json(arguments)
        self._begin(name)
        self._add_arguments(text)
        self._given = self._reader.position

    def _check(self, name: Any, known: bool) -> None:
        if not name or not isinstance(name, str) or not name.isprintable() or (known and name not in self._names):
            raise NotACallError

    def _begin(self, name: str) -> None:
        self._events.append(CallStart(self._calls, name))
        self._calls += 1
        self._bare_possible = bool(self.bare)

    def _add_arguments(self, text: str) -> None:
        if self._events and isinstance(last := self._events[-1], ArgumentsDelta):
            self._events[-1] = ArgumentsDelta(last.index, last.text + text)
        else:
            self._events.append(ArgumentsDelta(self._calls - 1, text))

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
