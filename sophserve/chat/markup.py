"""Markdown in a terminal. The text is coloured, never rewritten: it can be shown letter by letter as it comes, what is
not really Markdown loses nothing, and what is copied from the terminal is what the model wrote."""

from __future__ import annotations

import re

RESET, DIM, RED = "\x1b[0m", "\x1b[2m", "\x1b[31m"
_BOLD, _CODE, _HEADING, _MARK = "\x1b[1m", "\x1b[36m", "\x1b[1;35m", "\x1b[33m"

# Beginnings of a line that may still become something: they are held back until that is known.
_OPEN = re.compile(r"\s*(#{0,6}|[-*+]|\d{1,3}[.)]?|`{1,2}|~{1,2}|```.*|~~~.*)")
_OPEN_IN_CODE = re.compile(r"\s*(`*|~*)")
_FENCE = re.compile(r"\s*(```+|~~~+)(.*)")
_HEADING_LINE = re.compile(r"#{1,6} ")
_ITEM = re.compile(r"(\s*)([-*+]|\d{1,3}[.)])(?= )")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text without what would steer the terminal."""
    return _CONTROL.sub("", text)


class Markup:
    """Colours an answer that comes in pieces. All pieces together, without colours, are the text."""

    def __init__(self) -> None:
        self._fence = ""  # the mark that ends the block of code we are in
        self._start_line()

    def _start_line(self) -> None:
        self._held = ""
        self._known = False  # whether it is known what the line is
        self._base = ""  # the colour of the whole line
        self._bold = self._code = self._star = False

    def feed(self, text: str) -> str:
        """The coloured form of more text."""
        return "".join(map(self._letter, printable(text)))

    def finish(self) -> str:
        """The rest, and no colour any more."""
        return self._end_line()

    def _letter(self, letter: str) -> str:
        if letter == "\n":
            return self._end_line() + "\n"
        if self._known:
            return self._inline(letter)
        self._held += letter
        still_open = (_OPEN_IN_CODE if self._fence else _OPEN).fullmatch(self._held)
        return "" if still_open else self._begin_line()

    def _begin_line(self) -> str:
        line, self._held, self._known = self._held, "", True
        if self._fence or _HEADING_LINE.match(line):
            self._base = _CODE if self._fence else _HEADING
            return self._base + line
        mark = ""
        if item := _ITEM.match(line):
            mark, line = f"{item[1]}{_MARK}{item[2]}{RESET}", line[item.end() :]
        return mark + "".join(map(self._inline, line))

    def _end_line(self) -> str:
        fence = _FENCE.fullmatch(self._held)
        if fence and not (self._fence and fence[2].strip()):
            shown = DIM + self._held
            closes = self._fence and fence[1].startswith(self._fence)
            self._fence = "" if closes else self._fence or fence[1]
        else:
            shown = self._begin_line() if self._held else ""
            shown += "*" if self._star else ""
        self._start_line()
        return f"{shown}{RESET}"

    def _inline(self, letter: str) -> str:
        if self._base == _CODE:
            return letter
        star, self._star = "*" if self._star else "", False
        if letter == "`":
            self._code = not self._code
            return f"{star}{_CODE}`" if self._code else f"`{self._style()}"
        if letter != "*" or self._code:
            return star + letter
        if not star:
            self._star = True  # whether it is one of two shows the next letter
            return ""
        self._bold = not self._bold
        return f"{_BOLD}**" if self._bold else f"**{self._style()}"

    def _style(self) -> str:
        return RESET + self._base + (_BOLD if self._bold else "")
