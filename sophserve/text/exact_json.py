"""JSON between text and Python's values, with every number as it is written: JSON bounds neither their size nor their
digits, and Python's float does."""

from __future__ import annotations

import json
import re
from numbers import Number
from typing import Any, NoReturn
from uuid import uuid4

# Stands for written numbers while Python's encoder is at work, which knows no way to write one as it is.
_MARK = uuid4().hex
_MARKED = re.compile(rf'"{_MARK}:([^"]*)"')


@Number.register
class WrittenNumber:
    """A number that Python would write in another way."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __float__(self) -> float:
        return float(self.text)

    def __eq__(self, other: object) -> bool:
        return float(self) == (float(other) if isinstance(other, WrittenNumber) else other)

    def __hash__(self) -> int:
        return hash(float(self))


def number(text: str) -> float | WrittenNumber:
    """A number with a fraction or an exponent, from its text."""
    value = float(text)
    return value if repr(value) == text else WrittenNumber(text)


def loads(text: str) -> Any:
    """The value of a text. Raises ValueError or RecursionError."""
    return json.loads(text, parse_float=number, parse_int=_integer, parse_constant=_refuse)


def dumps(value: Any, **options: Any) -> str:
    """The text of a value, options being those of json.dumps. Raises what that does."""
    text = json.dumps(value, default=_marked, **options)
    return _MARKED.sub(r"\1", text) if _MARK in text else text


def _integer(text: str) -> int | WrittenNumber:
    return WrittenNumber(text) if text == "-0" else int(text)


def _marked(value: Any) -> str:
    if isinstance(value, WrittenNumber):
        return f"{_MARK}:{value.text}"
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
