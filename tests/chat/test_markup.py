"""Markdown in the terminal: coloured, and not a letter of it lost."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from sophserve.chat.markup import Markup, printable

TEXT = """# Title
Some **bold**, `code **not bold**` and 2 * 3 ** 4, *args.
- one
10. ten
```python
# no heading
**x
```
end **never closed
plain *"""


def shown(*parts: str) -> str:
    markup = Markup()
    return "".join(map(markup.feed, parts)) + markup.finish()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def colors(text: str) -> dict[str, str]:
    """The colours that are in force at each word."""
    found, now = {}, ""
    for escape, word in re.findall(r"\x1b\[([\d;]*)m|(\w+)", text):
        if word:
            found.setdefault(word, now)
        else:
            now = "" if escape == "0" else f"{now} {escape}".strip()
    return found


def test_what_is_coloured() -> None:
    found = colors(shown(TEXT))
    assert found["Title"] == "1;35" and found["Some"] == "" and found["bold"] == "1"
    assert found["code"] == "36" and found["not"] == "36" and found["and"] == ""
    assert found["one"] == "" and found["10"] == "33" and found["ten"] == ""
    assert found["python"] == "2" and found["no"] == found["heading"] == found["x"] == "36"
    assert found["end"] == "" and found["never"] == "1" and found["plain"] == ""


def test_nothing_is_lost() -> None:
    assert plain(shown(TEXT)) == TEXT
    assert shown(*TEXT) == shown(TEXT)


def test_text_is_shown_as_soon_as_it_is_understood() -> None:
    markup = Markup()
    assert plain(markup.feed("Hel")) == "Hel" and plain(markup.feed("lo\n")) == "lo\n"
    assert markup.feed("``") == "" and plain(markup.feed("x")) == "``x"


@given(st.lists(st.text("ab *`#-1.~\n\t"), max_size=6))
def test_any_text_in_any_parts(parts: list[str]) -> None:
    assert shown(*parts) == shown("".join(parts))
    assert plain(shown(*parts)) == "".join(parts)


def test_the_terminal_is_not_steered() -> None:
    assert printable("a\x1b[2J\x9b1mb\r\x07\x00c\td\n") == "a[2J1mbc\td\n"
