"""A text that is still being written, read by generators that pause where it ends."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
# A generator that yields whenever it needs more text, and returns what it found.
Reading = Generator[None, None, T]

# What opens or closes in an expression in Python.
_MARKS = re.compile(r"[\"'()\[\]{}]")
_STRING_MARKS = {quote: re.compile(rf"[\\{quote}]") for quote in "\"'"}
_WORD_END = re.compile(r"[^\w.-]")


class NotACallError(Exception):
    """What looked like a tool call is none."""


class Reader:
    """The text so far, and how far it has been read. ended: nothing will be added."""

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.ended = False

    def more(self) -> Reading[None]:
        """Wait for more text. Raises NotACallError at the end."""
        if self.ended:
            raise NotACallError
        yield

    def peek(self) -> Reading[str]:
        """The next character, which is not read. Raises NotACallError at the end."""
        while self.position == len(self.text):
            yield from self.more()
        return self.text[self.position]

    def space(self) -> Reading[None]:
        """Read whitespace, if any."""
        while True:
            while self.position < len(self.text) and self.text[self.position].isspace():
                self.position += 1
            if self.ended or self.position < len(self.text):
                return
            yield

    def take(self, literal: str) -> Reading[bool]:
        """Read a literal if it stands here."""
        while not self.ended and len(self.text) < self.position + len(literal):
            if not literal.startswith(self.text[self.position :]):
                return False
            yield
        found = self.text.startswith(literal, self.position)
        self.position += len(literal) * found
        return found

    def need(self, literal: str) -> Reading[None]:
        """Read a literal. Raises NotACallError if something else stands here."""
        if not (yield from self.take(literal)):
            raise NotACallError

    def word(self) -> Reading[str]:
        """Read a name. Raises NotACallError if none stands here."""
        start = self.position
        while (end := _WORD_END.search(self.text, start)) is None:
            yield from self.more()
        self.position = end.start()
        if self.position == start:
            raise NotACallError
        return self.text[start : self.position]

    def brackets(self) -> Reading[str]:
        """Read a list in Python, to the bracket that closes it. Raises NotACallError where there is none."""
        start = place = self.position
        yield from self.need("[")
        depth, quote = 0, ""
        while True:
            found = (_STRING_MARKS[quote] if quote else _MARKS).search(self.text, place)
            if found is None:
                place = max(place, len(self.text))
                yield from self.more()
                continue
            mark, place = found.group(), found.end()
            if mark == "\\" and quote:
                place += 1
            elif quote:
                quote = ""
            elif mark in "\"'":
                quote = mark
            elif mark in "([{":
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    self.position = place
                    return self.text[start:place]
