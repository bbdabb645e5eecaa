"""How facts about sophserve are asked for: what the modules about it share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from training.corpus.conversation import Topic, Turn
from training.corpus.wording import phrased


class Fact(NamedTuple):
    """Questions that mean the same, and their one answer."""

    questions: Sequence[str]
    answer: str


DEFINITION_QUESTIONS = (
    "What is {}?",
    "What is {}?",
    "What is {} in sophserve?",
    "What does {} mean?",
    "Do you know what {} is?",
    "Explain {}.",
    "Tell me about {}.",
    "Tell me what {} is.",
    "What do you know about {}?",
    "How would you explain {}?",
)
DETAIL_QUESTIONS = (
    "Explain {} in detail.",
    "Tell me more about {}.",
    "Explain in detail what {} is.",
    "What exactly is {}?",
    "Explain {} at length.",
)
SUPPORT_QUESTIONS = (
    "Does sophserve support {}?",
    "Does sophserve support {}?",
    "Is there support for {} in sophserve?",
    "Does sophserve have {}?",
    "Can sophserve work with {}?",
)


def turn(random: Random, fact: Fact) -> Turn:
    """One of the fact's questions, and its answer."""
    return Turn(phrased(random, random.choice(fact.questions)), fact.answer)


def questions_about(term: str, patterns: Sequence[str] = DEFINITION_QUESTIONS) -> list[str]:
    """The patterns as questions about a term."""
    return [pattern.format(term) for pattern in patterns]


def one_of(facts: Sequence[Fact], name: str) -> Topic:
    """A topic that asks for one of the facts."""

    def topic(random: Random) -> list[Turn]:
        return [turn(random, random.choice(facts))]

    topic.__name__ = name
    return topic
