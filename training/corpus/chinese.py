"""What the Chinese topics share: the punctuation of questions, numerals, lists, and the names of people."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

DIGITS = "零一二三四五六七八九"
SURNAMES = "王李张林白马安高"
GIVEN = "明红华月云天东海山星雨春秋乐"
_HALF_WIDTH = str.maketrans({"，": ", ", "。": ". ", "？": "?", "：": ": ", "“": '"', "”": '"'})


def asked(random: Random, patterns: Sequence[str], **values: str) -> str:
    """One of the patterns, filled; its punctuation full-width, half-width, or left off at the end."""
    text = random.choice(patterns).format(**values)
    chance = random.random()
    if chance < 0.2:
        return text.translate(_HALF_WIDTH).rstrip()
    if chance < 0.45:
        return text.rstrip("。？ ")
    return text


def person(random: Random) -> str:
    """The name of a person, of two or three characters."""
    first, second = random.sample(GIVEN, 2)
    kind = random.randrange(4)
    if kind == 0:
        return "小" + first
    if kind == 1:
        return first + first
    surname = random.choice(SURNAMES)
    return surname + first + (second if kind == 2 else "")


def numeral(number: int) -> str:
    """A number from 0 to 99 in Chinese."""
    tens, ones = divmod(number, 10)
    if not tens:
        return DIGITS[ones]
    return (DIGITS[tens] if tens > 1 else "") + "十" + (DIGITS[ones] if ones else "")


def count_word(number: int) -> str:
    """A number before a measure word, where two has its other form."""
    return "两" if number == 2 else numeral(number)


def joined(items: Sequence[str]) -> str:
    """The items as a list within a sentence."""
    if len(items) == 1:
        return items[0]
    return "、".join(items[:-1]) + "和" + items[-1]
