"""JSON that is still being written, copied in pieces that can be completed at any time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from sophserve.text.text_reader import NotACallError, Reader, Reading

# Strings up to this length are given out whole, so that no name, path or command is ever half of one.
LONG_STRING = 64
MAX_DEPTH = 128
# Of numbers, true, false and null.
_MAX_WORD = 400

_CLOSING = {"{": "}", "[": "]"}
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGINNING = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_WORD = re.compile(r"[\w.+-]*")


class JsonCopy:
    """Copies one value from a reader. give: takes the next piece of the copy.

    A piece ends behind a complete value, or within a string that is long already. closing: what makes valid JSON of
    all that was given so far. Line breaks within strings are forgiven, and escaped in the copy; all else is copied as
    it stands.
    """

    def __init__(self, reader: Reader, give: Callable[[str], None]) -> None:
        self.closing = ""
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
                self._give('"')
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
        while (end := _end(_WORD, reader)) == len(reader.text):
            if end - reader.position > _MAX_WORD:
                break
            yield from reader.more()
        word = reader.text[reader.position : end]
        if len(word) > _MAX_WORD:
            raise NotACallError
        to_json(parse_json(word))  # raises for what is no number that all can read, nor true, false or null
        self._hold_match(_WORD)

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
        count = _end(pattern, self._reader) - self._reader.position
        self._hold(count)
        return count

    def _hold(self, count: int) -> None:
        reader = self._reader
        self._held += reader.text[reader.position : reader.position + count]
        reader.position += count

    def _give(self, within: str = "") -> None:
        if self._held:
            self.closing = within + "".join(reversed(self._open))
            text, self._held = self._held, ""
            self._give_out(text)


def _end(pattern: re.Pattern[str], reader: Reader) -> int:
    found = pattern.match(reader.text, reader.position)
    return found.end() if found else reader.position


def json_value(reader: Reader) -> Reading[Any]:
    """Read one value. Raises NotACallError."""
    pieces: list[str] = []
    yield from JsonCopy(reader, pieces.append).read()
    return parse_json("".join(pieces))


def parse_json(text: str) -> Any:
    """A value in JSON; line breaks within strings are forgiven. Raises NotACallError."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotACallError from None


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
