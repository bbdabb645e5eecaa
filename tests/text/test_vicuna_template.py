"""The conversation form of LLaVA's own repository, whose checkpoints have no chat template, by its definition."""

from __future__ import annotations

import pytest

from model_plugins.processors.llava import LlavaLlamaProcessor
from sophserve.text.chat_template import ChatTemplate

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna_v1(system, turns):
    """As llava/conversation.py joins roles and messages with the separators of style TWO. A last answer of None is to
    be written."""
    text, separators = f"{system} ", (" ", "</s>")
    for index, answer in enumerate(turns):
        role = ("USER", "ASSISTANT")[index % 2]
        text += f"{role}:" if answer is None else f"{role}: {answer}{separators[index % 2]}"
    return f"<s>{text}"


def image(name):
    return {"type": "image", "image": name}


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


CASES = {
    "text": ([user("Hi")], SYSTEM, ["Hi", None]),
    "turns": (
        [user("Hi"), {"role": "assistant", "content": "Hello."}, user("Bye")],
        SYSTEM,
        ["Hi", "Hello.", "Bye", None],
    ),
    "system": ([{"role": "system", "content": "Be short."}, user("Hi")], "Be short.", ["Hi", None]),
    "image": ([user(text("What is it?"), image("a"))], SYSTEM, ["<image>\nWhat is it?", None]),
    "images in turns": (
        [user(image("a"), image("b"), text("Compare.")), {"role": "assistant", "content": "Same."}, user(image("c"))],
        SYSTEM,
        ["<image>\n<image>\nCompare.", "Same.", "<image>\n", None],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_that_of_the_repository(case):
    messages, system, turns = CASES[case]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate({"default": LlavaLlamaProcessor.chat_template}, special, LlavaLlamaProcessor.placeholder)
    rendered = template.rendered(messages)
    assert rendered.prompt == vicuna_v1(system, turns)
    assert rendered.images == [
        each["image"] for m in messages for each in m["content"] if isinstance(each, dict) and "image" in each
    ]
