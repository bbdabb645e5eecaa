"""JSON that is still being written, copied in pieces as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from sophserve.text.text_reader import NotACallError, Reader, Reading

# Strings up to this length are given out whole, so that no name, path or command is ever half of one.
LONG_STRING = 64
MAX_DEPTH = 128

T = TypeVar("T")
_CLOSING = {"{": "}", "[": "]"}
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGINNING = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_WORD = re.compile(r"[\w.+-]*")
# Numbers have any size: they are the reader's, who may have another type for them than Python's.
_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")


class JsonCopy:
    """Copies one value from a reader. give: takes the next piece of the copy.

    A piece ends behind a complete value, or within a string that is long already. Line breaks within strings are
    forgiven, and escaped in the copy; all else is copied as it stands.
    """

    def __init__(self, reader: Reader, give: Callable[[str], None]) -> None:
        self._reader = reader
        self._give_out = give
        self._held = ""
        self._open: list[str] = []  # the brackets that will close what is open

    def read(self) -> Reading[None]:
        """Copy up to the end of the value. Raises NotACallError where it is no JSON, or comes to no end."""
        opened = yield from self._value()
        while self._open:
            yield from self._space()
            bracket = self._open[-1]
            if (yield from self._reader.peek()) == bracket:
                self._hold(1)
                self._open.pop()
                self._give()
                opened = False
                continue
            if not opened:
                yield from self._need(",")
            if bracket == "}":
                yield from self._string()
                yield from self._need(":")
            opened = yield from self._value()

    def _value(self) -> Reading[bool]:
        """A string or a word, or the opening of an object or array, for which it returns True."""
        mark = yield from self._reader.peek()
        if mark in _CLOSING:
            if len(self._open) == MAX_DEPTH:
                raise NotACallError
            self._open.append(_CLOSING[mark])
            self._hold(1)
            return True
        if mark == '"':
            yield from self._string(is_value=True)
        else:
            yield from self._word()
        self._give()
        return False

    def _string(self, is_value: bool = False) -> Reading[None]:
        reader, length = self._reader, 0
        if (yield from reader.peek()) != '"':
            raise NotACallError
        self._hold(1)
        while True:
            length += self._hold_match(_PLAIN)
            if is_value and length > LONG_STRING:
                self._give()
            mark = yield from reader.peek()
            if mark == '"':
                self._hold(1)
                return
            if mark == "\\":
                while not _ESCAPE.match(reader.text, reader.position):
                    if not _ESCAPE_BEGINNING.fullmatch(reader.text, reader.position):
                        raise NotACallError
                    yield from reader.more()
                length += self._hold_match(_ESCAPE)
            elif mark < " ":
                self._held += json.dumps(mark)[1:-1]
                reader.position += 1
                length += 1

    def _word(self) -> Reading[None]:
        reader = self._reader
        end = reader.position
        while (end := _end(_WORD, reader, end)) == len(reader.text):
            yield from reader.more()
        if not _LITERAL.fullmatch(reader.text, reader.position, end):
            raise NotACallError
        self._hold(end - reader.position)

    def _need(self, mark: str) -> Reading[None]:
        """A mark, and blanks around it."""
        yield from self._space()
        if (yield from self._reader.peek()) != mark:
            raise NotACallError
        self._hold(1)
        yield from self._space()

    def _space(self) -> Reading[None]:
        self._hold_match(_SPACE)
        while (yield from self._reader.peek()) in " \t\n\r":
            self._hold_match(_SPACE)

    def _hold_match(self, pattern: re.Pattern[str]) -> int:
        count = _end(pattern, self._reader, self._reader.position) - self._reader.position
        self._hold(count)
        return count

    def _hold(self, count: int) -> None:
        reader = self._reader
        self._held += reader.text[reader.position : reader.position + count]
        reader.position += count

    def _give(self) -> None:
        if self._held:
            text, self._held = self._held, ""
            self._give_out(text)


def _end(pattern: re.Pattern[str], reader: Reader, start: int) -> int:
    found = pattern.match(reader.text, start)
    return found.end() if found else start


def json_text(reader: Reader) -> Reading[str]:
    """Copy one value. Raises NotACallError."""
    pieces: list[str] = []
    yield from JsonCopy(reader, pieces.append).read()
    return "".join(pieces)


def json_string(copied: str) -> str:
    """What a string says that was copied. Raises NotACallError for another value."""
    if not copied.startswith('"'):
        raise NotACallError
    text: str = json.loads(copied)
    return text


def json_object(text: str) -> str:
    """The copy of an object that is there as a whole. Raises NotACallError for anything else."""
    reader = Reader()
    reader.text, reader.ended = text.strip(), True
    copied = _at_once(json_text(reader))
    if not copied.startswith("{") or reader.position < len(reader.text):
        raise NotACallError
    return copied


def _at_once(reading: Reading[T]) -> T:
    """What a reading of a text finds that has ended, and for which it never waits."""
    try:
        next(reading)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a reading waits for more of a text that has ended")
