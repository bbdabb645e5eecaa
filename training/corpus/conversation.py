"""What the corpus is made of: turns, and the choice of words by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


# A topic makes one or several turns that belong together; each call makes others.
Topic = Callable[[Random], list[Turn]]


def filled(random: Random, patterns: Sequence[str], **values: str) -> str:
    """One of the patterns, with the values in the places of their names in braces."""
    return random.choice(patterns).format(**values)


def weighted(random: Random, topics: Mapping[Topic, float]) -> Topic:
    """One of the topics, by weight."""
    return random.choices(list(topics), list(topics.values()))[0]


def capitalized(text: str) -> str:
    """The text with a capital at its beginning, and the rest as it was."""
    return text[:1].upper() + text[1:]
