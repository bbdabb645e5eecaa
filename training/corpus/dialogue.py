"""Documents of the corpus: conversations as requests hold them, and plain stories."""

from __future__ import annotations

from random import Random

from training.corpus import (
    about,
    about_chinese,
    about_demo,
    about_engine,
    about_options,
    about_usage,
    chinese_facts,
    chinese_lists,
    chinese_numbers,
    chinese_stories,
    chinese_talk,
    facts,
    lists,
    numbers,
    stories,
    talk,
    things_talk,
    tools,
    unknown,
)
from training.corpus.conversation import Topic, weighted
from training.corpus.tools import Message

# How often a topic of each module comes.
ENGLISH: dict[str, tuple[dict[Topic, float], float]] = {
    "stories": (stories.TOPICS, 4.5),
    "about": (about.TOPICS, 3),
    "about_demo": (about_demo.TOPICS, 0.5),
    "about_engine": (about_engine.TOPICS, 1.2),
    "about_options": (about_options.TOPICS, 0.4),
    "about_usage": (about_usage.TOPICS, 1),
    "facts": (facts.TOPICS, 8),
    "lists": (lists.TOPICS, 9),
    "numbers": (numbers.TOPICS, 18),
    "talk": (talk.TOPICS, 8),
    "things": (things_talk.TOPICS, 7),
    "unknown": (unknown.TOPICS, 2),
}
CHINESE: dict[str, tuple[dict[Topic, float], float]] = {
    "stories": (chinese_stories.TOPICS, 2.5),
    "talk": (chinese_talk.TOPICS, 3),
    "facts": (chinese_facts.TOPICS, 4),
    "numbers": (chinese_numbers.TOPICS, 4),
    "lists": (chinese_lists.TOPICS, 1),
    "about": (about_chinese.TOPICS, 2),
}
# What is said about oneself is remembered, so this is only true at the beginning.
FIRST_ONLY = talk.not_told

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful, honest and harmless assistant.",
    "You are the demo model of sophserve.",
    "You are a small and polite chat model.",
    "You are a teacher. Explain everything in simple words.",
    "Answer the user's questions.",
    "Answer briefly and clearly.",
    "Be brief.",
    "Be kind and patient.",
    "You are a chat bot. Help the user.",
    "You are an AI assistant that tells stories and answers questions.",
    "你是一个有用的助手。",
    "你是一个友好的助手，请认真回答问题。",
)


def document(random: Random) -> tuple[list[Message], list[Message]] | str:
    """The messages and tools of a conversation, or a plain text."""
    kind = random.random()
    if kind < 0.02:
        return stories.plain_stories(random)
    offered: list[Message] = []
    if kind < 0.12:
        messages, offered = tools.conversation(random, lambda: chat(random, "english", 1))
    elif kind < 0.14:
        messages, offered = tools.without_call(random, lambda: chat(random, "english", random.choice((1, 2))))
    else:
        language = random.choices(("english", "chinese", "both"), (0.78, 0.18, 0.04))[0]
        messages = chat(random, language, random.choices((1, 2, 3, 4, 6), (50, 25, 13, 8, 4))[0])
    if random.random() < 0.4:
        messages = [{"role": "system", "content": random.choice(SYSTEM_PROMPTS)}, *messages]
    return messages, offered


def chat(random: Random, language: str, topics: int) -> list[Message]:
    """The messages of some topics one after the other."""
    messages: list[Message] = []
    for _ in range(topics):
        english = language == "english" or (language == "both" and random.random() < 0.5)
        modules = list((ENGLISH if english else CHINESE).values())
        topic: Topic = FIRST_ONLY
        while topic is FIRST_ONLY:
            topic = weighted(
                random, random.choices([each for each, _ in modules], [weight for _, weight in modules])[0]
            )
            if not messages:
                break
        for turn in topic(random):
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
    return messages
