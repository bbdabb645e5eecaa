"""How people ask: the same question in careful and in careless wording."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

OPENINGS = (
    "Please tell me: ",
    "Tell me, ",
    "Can you tell me: ",
    "I have a question. ",
    "Do you know this? ",
    "Hello! ",
)
GREETINGS = ("Hello! ", "Hi. ")


def asked(random: Random, question: str) -> str:
    """The question as somebody may type it: mostly as it is, now and then careless or with an opening."""
    kind = random.random()
    if kind < 0.6:
        return question
    if kind < 0.7:
        return question.lower()
    if kind < 0.78:
        return question.rstrip("?.")
    if kind < 0.88:
        return question.lower().rstrip("?.")
    opening = random.choice(OPENINGS if question.endswith("?") and not question.startswith("I ") else GREETINGS)
    return opening + (question[0].lower() + question[1:] if opening.endswith((": ", ", ")) else question)


def requested(random: Random, request: str) -> str:
    """A request such as "Name three animals." as somebody may type it."""
    body = request[0].lower() + request[1:]
    plain = body.rstrip(".")
    forms = (request, request, request, request.rstrip("."), plain, f"Please {body}", f"Can you {plain}?")
    return random.choice(
        (*forms, f"could you {plain}", f"{request.rstrip('.')}, please.", f"Could you please {plain}?")
    )


def phrased(random: Random, text: str) -> str:
    """A question or a request as somebody may type it."""
    return asked(random, text) if text.endswith("?") else requested(random, text)


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith(('uni', 'use')) else 'a'} {noun}"


def joined(words: Sequence[str]) -> str:
    """The words as a list in a sentence: "a, b, and c"."""
    if len(words) < 3:
        return " and ".join(words)
    return ", ".join(words[:-1]) + ", and " + words[-1]
