"""What sophserve is, how it is started."""

from __future__ import annotations

from random import Random

from training.corpus.about_facts import Fact, one_of, turn
from training.corpus.conversation import Topic, Turn

WHAT = "sophserve is a server for large language models. It speaks the OpenAI API, so any OpenAI client can talk to it."
WHAT_IN_DETAIL = (
    "sophserve is a server for large language models. It speaks the OpenAI API, so any OpenAI client can talk to it. "
    "It runs on Sophgo SG2260 TPUs, or, without a chip, on the CPU. It starts with one command, "
    "and the same engine can be used inside a Python program."
)
START = "Run `sophserve --model /data/Qwen2-7B`. When the log says `ready`, it answers at `http://localhost:8000`."
INSTALL = "Run `pip install .` in the folder of the source code. It needs Linux and Python 3.11 or later."
MODELS = "sophserve serves Llama, Mistral, Qwen2, Qwen2.5, QwQ and Qwen3 models."
GPU = "No, it does not need a GPU. It runs on the CPU, or on SG2260 TPUs."
FREE = "Yes, sophserve is free software under the Apache-2.0 license."
PYTHON_CODE = """Use the official OpenAI client:

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.choices[0].message.content)
```"""
CURL = """Send a request like this one:

```bash
curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "messages": [{"role": "user", "content": "Hello!"}]
}'
```"""
EMBEDDED = """Use the `LLM` class:

```python
from sophserve import LLM

with LLM(model="/data/Qwen2-7B") as llm:
    print(llm.chat([{"role": "user", "content": "Hello!"}])[0].outputs[0].text)
```"""
CHAT = "Run `sophserve chat` in the terminal, or open `http://localhost:8000/` in a browser."
DEMO_START = "Run `sophserve --model demo`. Nothing has to be downloaded."

INTRODUCTION = Fact(
    (
        "What is sophserve?",
        "What is sophserve?",
        "What is sophserve?",
        "What's sophserve?",
        "What is Sophserve?",
        "Tell me about sophserve.",
        "Tell me something about sophserve.",
        "Tell me what sophserve is.",
        "Explain sophserve.",
        "Explain what sophserve is.",
        "Explain to me what sophserve is.",
        "Describe sophserve.",
        "Introduce sophserve.",
        "What does sophserve do?",
        "What can sophserve do?",
        "What is sophserve for?",
        "What is sophserve used for?",
        "What is the purpose of sophserve?",
        "What kind of program is sophserve?",
        "What kind of software is sophserve?",
        "What do you know about sophserve?",
        "Do you know sophserve?",
        "Do you know what sophserve is?",
        "Have you heard of sophserve?",
        "What does sophserve mean?",
        "What is this sophserve?",
        "Why would I use sophserve?",
        "I have never heard of sophserve. What is it?",
        "sophserve: what is it?",
        "sophserve?",
        "So what is sophserve?",
        "What is the sophserve server?",
        "Can you explain sophserve in one sentence?",
        "Give me a short introduction to sophserve.",
        "What is sophserve in short?",
    ),
    WHAT,
)
INTRODUCTION_IN_DETAIL = Fact(
    (
        "Explain sophserve in detail.",
        "Tell me more about sophserve.",
        "Describe sophserve in detail.",
        "Tell me everything about sophserve.",
        "What exactly is sophserve?",
        "Explain in detail what sophserve is.",
        "Give me a long description of sophserve.",
    ),
    WHAT_IN_DETAIL,
)
RUNNING_ON = Fact(
    (
        "Who are you running on?",
        "What are you running on?",
        "Which server are you running on?",
        "What software are you running on?",
        "Which program serves you?",
        "Who serves you?",
        "What server is this?",
        "Where do you run?",
        "What is behind this chat?",
        "Which software runs you?",
    ),
    "I run on sophserve, a server for large language models.",
)

# Each of these can follow the question what sophserve is.
FOLLOW_UPS = (
    Fact(
        ("How do I start it?", "How is it started?", "And how do I start it?", "How can I run it?", "How do I run it?"),
        START,
    ),
    Fact(("How do I install it?", "How can I install it?", "And how is it installed?", "How do I get it?"), INSTALL),
    Fact(
        (
            "Which models can it serve?",
            "Which models does it support?",
            "What models can it run?",
            "And which models can it serve?",
        ),
        MODELS,
    ),
    Fact(
        ("Does it need a GPU?", "Do I need a GPU for it?", "Does it need a graphics card?", "And does it need a GPU?"),
        GPU,
    ),
    Fact(("Is it free?", "Is it open source?", "Can I use it for free?", "And is it free?"), FREE),
    Fact(
        ("What is its license?", "Which license does it have?", "What license is it under?"),
        "It is under the Apache-2.0 license.",
    ),
    Fact(("How do I use it from Python?", "Can I use it from Python?", "How do I call it in Python?"), PYTHON_CODE),
    Fact(("How do I ask it with curl?", "Can I use curl with it?", "How do I test it with curl?"), CURL),
    Fact(("How do I chat with it?", "Can I chat with it?", "How can I talk to it?"), CHAT),
    Fact(
        ("Which language is it written in?", "What is it written in?", "What programming language does it use?"),
        "It is written in Python. The kernels for the CPU are written in C++.",
    ),
    Fact(
        ("Does it run on Windows?", "Can I run it on Windows?", "Which system does it need?"),
        "It runs on Linux, with Python 3.11 or later.",
    ),
    Fact(("Tell me more about it.", "Tell me more.", "Explain it in detail.", "Can you tell me more?"), WHAT_IN_DETAIL),
    Fact(
        ("Where does it run?", "What hardware does it need?", "What does it run on?"),
        "It runs on Sophgo SG2260 TPUs, or, without a chip, on the CPU.",
    ),
    Fact(
        ("Which port does it use?", "What is its port?", "What port does it listen on?"),
        "It listens on port 8000 of localhost. `--port` and `--host` change that.",
    ),
    Fact(
        ("Is there a small model to try it?", "How can I try it quickly?", "Can I try it without a download?"),
        DEMO_START,
    ),
    Fact(("Is it fast?", "How fast is it?"), "Yes. On two CPU cores it was faster than vLLM with Qwen2 0.5B."),
)

SETUP = (
    Fact(
        (
            "How do I start sophserve?",
            "How do I run sophserve?",
            "How can I start sophserve?",
            "How is sophserve started?",
            "How do I launch sophserve?",
            "How do I start the server?",
            "Which command starts sophserve?",
            "What is the command to start sophserve?",
            "Show me how to start sophserve.",
            "Tell me how to run sophserve.",
            "How do I serve a model?",
            "How do I serve a model with sophserve?",
        ),
        START,
    ),
    Fact(
        (
            "How do I install sophserve?",
            "How can I install sophserve?",
            "How is sophserve installed?",
            "Tell me how to install sophserve.",
            "What do I need to install sophserve?",
            "How do I get sophserve?",
            "How do I set up sophserve?",
        ),
        INSTALL,
    ),
    Fact(
        (
            "Which Python does sophserve need?",
            "Which Python version do I need for sophserve?",
            "What version of Python does sophserve use?",
            "Does sophserve run on Python 3.10?",
            "Which Python is required?",
        ),
        "sophserve needs Python 3.11 or later.",
    ),
    Fact(
        (
            "Does sophserve run on Windows?",
            "Can I run sophserve on Windows?",
            "Is there sophserve for Windows?",
            "Does sophserve work on a Mac?",
            "Can I use sophserve on macOS?",
        ),
        "No, sophserve runs on Linux.",
    ),
    Fact(
        (
            "Which operating system does sophserve need?",
            "What system does sophserve run on?",
            "What are the requirements of sophserve?",
            "What does sophserve need?",
        ),
        "sophserve needs Linux and Python 3.11 or later.",
    ),
    Fact(
        (
            "Does sophserve need a GPU?",
            "Do I need a GPU for sophserve?",
            "Can I run sophserve without a GPU?",
            "Is a GPU required for sophserve?",
            "Does sophserve need a graphics card?",
        ),
        GPU,
    ),
    Fact(
        (
            "What hardware does sophserve need?",
            "What does sophserve run on?",
            "Which hardware does sophserve support?",
            "Where does sophserve run?",
            "Which chips does sophserve support?",
            "Can sophserve run on a CPU?",
            "Can I run sophserve on my laptop?",
        ),
        "sophserve runs on Sophgo SG2260 TPUs, or, without a chip, on the CPU.",
    ),
    Fact(
        (
            "Which language is sophserve written in?",
            "What is sophserve written in?",
            "In which programming language is sophserve written?",
            "Is sophserve written in Python?",
            "What programming language does sophserve use?",
        ),
        "sophserve is written in Python. The kernels for the CPU are written in C++.",
    ),
    Fact(
        (
            "Is sophserve free?",
            "Is sophserve open source?",
            "Can I use sophserve for free?",
            "Is sophserve free software?",
            "Does sophserve cost anything?",
        ),
        FREE,
    ),
    Fact(
        (
            "What is the license of sophserve?",
            "What license does sophserve have?",
            "Which license is sophserve under?",
            "What is sophserve's license?",
            "Tell me the license of sophserve.",
        ),
        "The license of sophserve is Apache-2.0.",
    ),
)


def introduction(random: Random) -> list[Turn]:
    """What sophserve is, and sometimes further questions about it."""
    turns = [turn(random, INTRODUCTION)]
    count = random.choice((0, 0, 1, 1, 2, 3))
    return turns + [turn(random, fact) for fact in random.sample(FOLLOW_UPS, count)]


def running_on(random: Random) -> list[Turn]:
    """What the model runs on, and sometimes what that is."""
    turns = [turn(random, RUNNING_ON)]
    if random.random() < 0.4:
        question = random.choice(("What is that?", "What is sophserve?", "And what is sophserve?", "What does it do?"))
        turns.append(Turn(question, WHAT))
    return turns


TOPICS: dict[Topic, float] = {
    introduction: 6,
    one_of([INTRODUCTION_IN_DETAIL], "introduction_in_detail"): 0.6,
    running_on: 1,
    one_of(SETUP, "setup"): 4,
}
