"""Bounds the digits of numbers in JSON: a model that likes digits would never end."""

from __future__ import annotations

# One after the other: enough for an integer of 128 bits.
MOST_DIGITS = 40
DIGITS = b"0123456789"
# What tokens begin with that can follow the digits of a number.
FOLLOWING = b".eE,]}) \n\r\t"


class NumberBound:
    """Masks, as numbers, of the tokens that begin with a digit, and of those that can follow a number besides."""

    def __init__(self, digits: int, following: int) -> None:
        self._digits, self._following = digits, following

    def ended(self, mask: int) -> int:
        """The mask behind a long row of digits, without further ones where they are of a number: it can end there, and
        nothing else can follow."""
        rest = mask & ~self._digits
        return mask if not rest or rest & ~self._following else rest


def digits_behind(count: int, text: bytes) -> int:
    """How many digits an answer ends in that ended in `count` before this text was added."""
    end = len(text) - len(text.rstrip(DIGITS))
    return count + end if end == len(text) else end
