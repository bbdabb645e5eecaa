"""What the demo model of sophserve is."""

from __future__ import annotations

from random import Random

from training.corpus.about import DEMO_START
from training.corpus.about_facts import Fact, one_of, turn
from training.corpus.conversation import Topic, Turn

DEMO = (
    "The demo model is a small chat model with about 4 million parameters. It ships with sophserve "
    "and is started with `sophserve --model demo`."
)
DEMO_IN_DETAIL = (
    "The demo model is a small chat model with about 4 million parameters. It was trained from "
    "scratch on generated text, "
    "takes about 8 MB, and ships with sophserve. Start it with `sophserve --model demo`; `demo-gptq` is its 4-bit form."
)
DEMO_LIMITS = "The demo model is very small, so it knows little and makes mistakes. Use a larger model for real work."
DEMO_SIZE = "The demo model has about 4 million parameters and takes about 8 MB."
DEMO_TRAINING = "It was trained from scratch on generated text. The folder `training/` shows how."

DEMO_QUESTIONS = (
    Fact(
        (
            "What is the demo model?",
            "Tell me about the demo model.",
            "Explain the demo model.",
            "What is `--model demo`?",
            "What does `sophserve --model demo` do?",
            "Which model comes with sophserve?",
            "Does sophserve ship with a model?",
            "What is the demo model of sophserve?",
        ),
        DEMO,
    ),
    Fact(
        (
            "Explain the demo model in detail.",
            "Tell me more about the demo model.",
            "Describe the demo model in detail.",
        ),
        DEMO_IN_DETAIL,
    ),
    Fact(
        (
            "How do I start the demo model?",
            "How do I run the demo model?",
            "How can I try sophserve without a download?",
            "How can I try sophserve quickly?",
            "Is there a small model to try sophserve?",
        ),
        DEMO_START,
    ),
    Fact(
        (
            "How large is the demo model?",
            "How big is the demo model?",
            "What is the size of the demo model?",
            "How many parameters does the demo model have?",
            "How much space does the demo model take?",
        ),
        DEMO_SIZE,
    ),
    Fact(
        (
            "How was the demo model trained?",
            "Who trained the demo model?",
            "What was the demo model trained on?",
            "Where does the demo model come from?",
            "How is the demo model made?",
        ),
        "The demo model was trained from scratch on generated text. The folder `training/` shows how.",
    ),
    Fact(
        (
            "What are the limits of the demo model?",
            "Is the demo model good?",
            "Does the demo model make mistakes?",
            "Can I trust the demo model?",
            "Can I use the demo model for real work?",
            "What can the demo model not do?",
            "Why is the demo model so weak?",
        ),
        DEMO_LIMITS,
    ),
    Fact(
        (
            "What is demo-gptq?",
            "What is `demo-gptq`?",
            "Tell me about demo-gptq.",
            "Explain demo-gptq.",
            "Is there a quantized demo model?",
        ),
        "`demo-gptq` is the demo model with GPTQ weights of 4 bits. Start it with `sophserve --model demo-gptq`.",
    ),
    Fact(
        (
            "Which languages does the demo model speak?",
            "Does the demo model speak Chinese?",
            "What languages does the demo model know?",
        ),
        "The demo model speaks English and some Chinese.",
    ),
)
DEMO_FOLLOW_UPS = (
    Fact(("How large is it?", "How big is it?", "How many parameters does it have?"), DEMO_SIZE),
    Fact(("How was it trained?", "What was it trained on?", "Where does it come from?"), DEMO_TRAINING),
    Fact(("What are its limits?", "Is it good?", "Does it make mistakes?", "Can I trust it?"), DEMO_LIMITS),
    Fact(("How do I start it?", "How do I run it?", "How can I try it?"), DEMO_START),
    Fact(("Tell me more about it.", "Tell me more.", "Explain it in detail."), DEMO_IN_DETAIL),
    Fact(
        ("Is there a 4-bit form of it?", "Is there a smaller form of it?", "Is there a quantized form?"),
        "Yes, `demo-gptq` is its 4-bit form.",
    ),
    Fact(("Which languages does it speak?", "Does it speak Chinese?"), "It speaks English and some Chinese."),
)


def demo_model(random: Random) -> list[Turn]:
    """What the demo model is, and further questions about it."""
    turns = [turn(random, DEMO_QUESTIONS[0])]
    return turns + [turn(random, fact) for fact in random.sample(DEMO_FOLLOW_UPS, random.choice((1, 2, 3)))]


TOPICS: dict[Topic, float] = {
    one_of(DEMO_QUESTIONS, "demo_questions"): 2,
    demo_model: 1,
}
