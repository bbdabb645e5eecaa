"""How much there is in a JSON text, found before any of it is made into objects.

The decoder is one call that nothing can interrupt, and what it makes is gone through by Python afterwards: both take as
long as there are values, which a size in bytes does not tell.
"""

from __future__ import annotations

import codecs

MOST_VALUES = 1 << 19
# Texts (names are such, too), arrays and objects cost several times as much as numbers.
MOST_PARTS = 1 << 17
MOST_ESCAPES = 1 << 20
# Bytes of UTF-8 beyond one for each character.
_MOST_WIDE = 1 << 23
_LONG_NUMBER = b"0" * 100
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
# What is looked at with one call, in bytes.
_SLICE = 1 << 18


class JsonTooLarge(ValueError):
    """The text has more of something than it may."""


def check_json(data: bytes | bytearray) -> None:
    """Raise JsonTooLarge for a text that would take too long to decode, and UnicodeDecodeError for bytes that are not
    UTF-8. Gives way to other threads every few milliseconds."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    inside = 0  # whether the slice begins in a text
    values = quotes = containers = escapes = characters = start = 0
    while start < len(data):
        piece = data[start : start + _SLICE]
        if start + len(piece) < len(data) and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = piece[:-1]  # an escape is not cut apart
        characters += _count_characters(decoder, piece, start)
        start += len(piece)
        if b"\\" in piece:
            escapes += piece.count(b"\\")
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = piece.split(b'"')
        outside = b"".join(texts[inside::2])
        inside ^= (len(texts) - 1) % 2
        quotes += len(texts) - 1
        values += outside.count(b",")
        containers += outside.count(b"[") + outside.count(b"{")
        if _LONG_NUMBER in outside.translate(_DIGITS):
            raise JsonTooLarge("has a number of more than 100 digits; round it")
        _check("values", values, MOST_VALUES, "send fewer at a time")
        _check("texts, arrays and objects", quotes // 2 + containers, MOST_PARTS, "send fewer at a time")
        _check("escapes", escapes, MOST_ESCAPES, "write characters as UTF-8")
        _check("bytes of characters beyond ASCII", start - characters, _MOST_WIDE, "send less text")
    decoder.decode(b"", final=True)


def _check(what: str, count: int, most: int, advice: str) -> None:
    if count > most:
        raise JsonTooLarge(f"has more than {most} {what}; {advice}")


def _count_characters(decoder: codecs.IncrementalDecoder, piece: bytes | bytearray, start: int) -> int:
    pending, _ = decoder.getstate()
    try:
        return len(decoder.decode(piece))
    except UnicodeDecodeError as error:
        error.start += start - len(pending)
        raise
