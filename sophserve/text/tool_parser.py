"""Tool calls in a text that is being generated: what all formats have in common.

A call begins with its first argument that is complete or long (JsonCopy), and its arguments are given out as they come
and as they are written. One that comes to no end is broken off: what has been given out of it stays unfinished, and
what is left of it is not content. What turns out to be no call before it begins is. A format says what may begin a
call, and reads one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar
from uuid import uuid4

from sophserve.text.answer_events import ArgumentsDelta, CallBroken, CallStart, ContentDelta, Event
from sophserve.text.json_stream import JsonCopy, json_object, json_string, json_text
from sophserve.text.text_reader import NotACallError, Reader, Reading
from sophserve.text.tool_grammar import ToolGrammar

# Under these keys an object has the arguments of a call.
_ARGUMENTS = ("parameters", "arguments")
# Characters given out that are worth cutting off.
_MANY = 4096


class ToolParser(ABC):
    """Finds the calls in one answer. names: the tools that there are.

    markers: texts that begin a call anywhere. inner: further texts of the format that may be special tokens. ends: what
    stands behind calls, one after the other, if anything. bare: a character that begins a call at the beginning of the
    answer and behind another call, if the name is that of a tool. signs: what chat templates that show this format
    hold, one of them at least; other_signs: what only those of other formats hold. Whitespace around calls belongs to
    them.
    """

    markers: ClassVar[tuple[str, ...]]
    inner: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[tuple[str, ...]] = ()
    bare: ClassVar[str] = ""
    signs: ClassVar[tuple[str, ...]] = ()
    other_signs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._reader = Reader()
        self._given = 0  # up to where the text has been given out
        self._calls = 0
        self._complete = 0  # calls that are
        self._open: list[str] | None = None  # the text of a call that has begun, as far as it has been given out
        self._bare_possible = bool(self.bare)
        self._events: list[Event] = []
        self._marker = _any_of(self.markers)
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
    def introduction(cls, tools: Sequence[dict[str, Any]], template: str) -> str:
        """What a system message says of the tools, as a request has them, and of how to call them, for chat templates
        that do not show them; empty where models of this format always have one that does."""
        return ""

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
        fields: dict[str, str] = {}  # in JSON
        yield from reader.need("{")
        more = True
        while more:
            yield from reader.space()
            key = yield from self._key()
            if key in _ARGUMENTS and "name" in fields and (yield from reader.peek()) == "{":
                yield from self._arguments(json_string(fields["name"]), known)
                yield from self._rest_of_object()
                return
            fields[key] = yield from json_text(reader)
            yield from reader.space()
            more = yield from reader.take(",")
        yield from reader.need("}")
        if known and not fields.keys() & set(_ARGUMENTS):
            raise NotACallError
        given = next((fields[key] for key in _ARGUMENTS if key in fields), "null")
        arguments = "{}" if given == "null" else json_object(json_string(given) if given[0] == '"' else given)
        self._call(json_string(fields.get("name", "")), arguments, known)

    def _key(self) -> Reading[str]:
        key = json_string((yield from json_text(self._reader)))
        yield from self._reader.space()
        yield from self._reader.need(":")
        yield from self._reader.space()
        return key

    def _rest_of_object(self) -> Reading[None]:
        """Read what stands in an object behind the arguments. The bracket that closes it may be missing."""
        reader = self._reader
        yield from reader.space()
        while (yield from reader.take(",")):
            yield from reader.space()
            yield from self._key()
            yield from json_text(reader)
            yield from reader.space()
        if (yield from reader.take("}")):
            self._given = reader.position
        else:
            reader.position = self._given

    def _arguments(self, name: str, known: bool = False) -> Reading[None]:
        """Read the arguments of a call, an object, and give them out as they come."""
        self._check(name, known)
        if (yield from self._reader.peek()) != "{":
            raise NotACallError

        def give(text: str) -> None:
            if self._open is None:
                self._begin(name)
            self._add_arguments(text)
            self._pass(self._reader.position)

        yield from JsonCopy(self._reader, give).read()
        self._end_call()

    def _call(self, name: str, arguments: str, known: bool = False) -> None:
        """Give out a complete call. arguments: an object in JSON."""
        self._check(name, known)
        self._begin(name)
        self._add_arguments(arguments)
        self._given = self._reader.position
        self._end_call()

    def _check(self, name: str, known: bool) -> None:
        if not name or not name.isprintable() or (known and name not in self._names):
            raise NotACallError

    def _begin(self, name: str) -> None:
        self._events.append(CallStart(self._calls, name))
        self._calls += 1
        self._open = []
        self._bare_possible = bool(self.bare)

    def _end_call(self) -> None:
        self._open = None
        self._complete += 1

    def _pass(self, end: int) -> None:
        """The text up to there has been given out, or is left out."""
        if self._open is not None:
            self._open.append(self._reader.text[self._given : end])
        self._given = end
        if self._given > _MANY:
            self._forget()

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
                self._pass(reader.position)
            elif reader.ended and literal.startswith(reader.text[reader.position :]):
                reader.position = len(reader.text)
                self._pass(reader.position)
            else:
                reader.position = self._given

    def _advance(self) -> list[Event]:
        next(self._run, None)
        events, self._events = self._events, []
        return events

    def _parse(self) -> Reading[None]:
        reader = self._reader
        while (yield from self._find()):
            start, complete = reader.position, self._complete
            try:
                yield from self._read(reader)
            except NotACallError:
                self._bare_possible = False
                if self._open is not None or self._complete > complete:
                    yield from self._break_off()
                elif not reader.ended:
                    reader.position = start + 1  # it must not be tried again
                else:
                    if not self._complete:
                        self._give(len(reader.text))
                    return

    def _break_off(self) -> Reading[None]:
        """Leave out what is left of calls: up to what ends one or begins another one. What the end of the text cuts off
        is all in it, the texts in its strings as well."""
        reader, bounds = self._reader, (*self.ends, *self.markers)
        bound = _any_of(bounds)
        while not reader.ended and not bound.search(reader.text, reader.position):
            reader.position = max(reader.position, self._held(bounds))
            self._pass(reader.position)
            yield
        found = bound.search(reader.text, reader.position)
        reader.position = found.start() if found else len(reader.text)
        self._pass(reader.position)
        yield from self._skip(*self.ends)
        if self._open is not None:
            self._events.append(CallBroken(self._calls - 1, "" if self._complete else "".join(self._open)))
            self._open = None

    def _find(self) -> Reading[bool]:
        """Give out content up to where a call may begin; False for the end of the text."""
        reader = self._reader
        while True:
            found = self._marker.search(reader.text, reader.position)
            end = found.start() if found else self._held(self.markers)
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

    def _held(self, texts: Sequence[str]) -> int:
        """Where the last part begins that may become one of these."""
        reader = self._reader
        for size in range(min(max(map(len, texts)) - 1, len(reader.text) - reader.position), 0, -1):
            if any(text.startswith(reader.text[-size:]) for text in texts):
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


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)))
