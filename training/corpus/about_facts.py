"""How facts about sophserve are asked for: what the modules about it share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from training.corpus.conversation import Topic, Turn


class Fact(NamedTuple):
    """Questions that mean the same, and their one answer."""

    questions: Sequence[str]
    answer: str


QUESTION_OPENINGS = (
    "Hi, {}",
    "Hello, {}",
    "Please tell me: {}",
    "One question: {}",
    "Hey, {}",
    "Can you tell me: {}",
    "Quick question: {}",
)
REQUEST_FORMS = (
    "Please {}.",
    "Can you {}?",
    "Could you {}?",
    "Could you please {}?",
    "Can you please {}?",
    "Hi, please {}.",
)
KEPT_CAPITALS = ("I", "Docker", "Python", "Prometheus", "Linux", "Qwen2", "Llama")

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


def lowered(text: str) -> str:
    """The text with a small letter at its beginning, names aside."""
    word = text.replace("?", " ").replace("'", " ").split(" ", 1)[0]
    if word in KEPT_CAPITALS or word[1:] != word[1:].lower():
        return text
    return text[:1].lower() + text[1:]


def asked(random: Random, question: str) -> str:
    """The question as one user or another would type it."""
    chance = random.random()
    if chance < 0.55:
        return question
    if question.endswith("?"):
        if chance < 0.68:
            return lowered(question)
        if chance < 0.76:
            return question[:-1]
        if chance < 0.88:
            return lowered(question[:-1])
        return random.choice(QUESTION_OPENINGS).format(lowered(question))
    if chance < 0.65:
        return lowered(question.rstrip("."))
    return random.choice(REQUEST_FORMS).format(lowered(question.rstrip(".")))


def turn(random: Random, fact: Fact) -> Turn:
    """One of the fact's questions, and its answer."""
    return Turn(asked(random, random.choice(fact.questions)), fact.answer)


def questions_about(term: str, patterns: Sequence[str] = DEFINITION_QUESTIONS) -> list[str]:
    """The patterns as questions about a term."""
    return [pattern.format(term) for pattern in patterns]


def one_of(facts: Sequence[Fact], name: str) -> Topic:
    """A topic that asks for one of the facts."""

    def topic(random: Random) -> list[Turn]:
        return [turn(random, random.choice(facts))]

    topic.__name__ = name
    return topic
