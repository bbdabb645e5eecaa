"""The models that ship with sophserve say what they must: a wrong number anywhere in the server shows as a bad text."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# What the user says, turn by turn, and what the last answer must have.
PROMPTS: dict[tuple[str, ...], str] = {
    ("What is sophserve?",): r"server for large language models",
    ("what does sophserve do?",): r"OpenAI API",
    ("How do I start sophserve?",): r"`sophserve --model ",
    ("Does sophserve need a GPU?",): r"\bno|does not need",
    ("What is prefix caching?",): r"computed once|only once|prompt",
    ("What is the cmodel?",): r"CPU",
    ("What is sophserve?", "Is it free?"): r"Apache-2\.0",
    ("What is sophserve?", "How do I start it?"): r"`sophserve --model ",
    ("sophserve 是什么？",): r"大语言模型",
    ("Who are you?",): r"demo model",
    ("Hello!",): r"Hello|Hi",
    ("Thank you!",): r"welcome",
    ("My name is Clara.", "What is my name?"): r"Clara",
    ("What is 7 plus 5?",): r"\b12\b",
    ("What is 9 plus 8?",): r"\b17\b",
    ("12 + 6",): r"\b18\b",
    ("What is 14 minus 5?",): r"\b9\b",
    ("What is 6 times 7?",): r"\b42\b",
    ("What is 7 plus 5?", "And plus 3?"): r"\b15\b",
    ("Count from 3 to 8.",): r"3, 4, 5, 6, 7, 8",
    ("Tom has 3 apples and gets 2 more. How many apples does Tom have now?",): r"\b5 apples",
    ("What is the capital of France?",): r"\bParis\b",
    ("What is the capital of Japan?", "And of Italy?"): r"\bRome\b",
    ("What color is a banana?",): r"yellow",
    ("What is a cat?",): r"animal",
    ("What does a cow say?",): r"moo",
    ("Why is the sky blue?",): r"light",
    ("What day comes after Monday?",): r"Tuesday",
    ("What is the opposite of hot?",): r"cold",
    ("How many legs does a spider have?",): r"\b8\b|eight",
    ("Name three animals.",): r"Three animals are an? \w+, an? \w+, and an? \w+\.",
    ("Give me a list of four colors.",): r"1\. .*\n2\. .*\n3\. .*\n4\. ",
    ("How do you spell boat?",): r"b-o-a-t",
    ("Tell me a story about a cat and a boat.",): r"(?s)a cat named [A-Z].*boat",
    ("Tell me a story about a fox and a lamp.",): r"(?s)a fox named [A-Z].*lamp",
    ("Who won the football match yesterday?",): r"do not know|cannot|not know",
    ("你好",): r"你好",
    ("七加五等于几？",): r"12|十二",
    ("法国的首都是哪里？",): r"巴黎",
    ("讲一个关于猫和船的故事",): r"(?s)小猫，名字叫.*船",
}

# A model of 256 channels loses some of what it can in four bits. This is left of it.
IN_FOUR_BITS = {
    ("Give me a list of four colors.",): r"1\. .*\n2\. .*\n3\. ",
    ("Tell me a story about a cat and a boat.",): r"a cat named [A-Z]",
    ("Tell me a story about a fox and a lamp.",): r"a fox named [A-Z]",
}

STORY = "Once upon a time, there was a small dog named Max. He lived in a small village."


FOUR_BITS = [("demo-gptq", "8"), pytest.param(("demo-gptq", "16"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=[("demo", "auto"), *FOUR_BITS], ids="-".join)
def served_with(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A model, and the bits of activations before weights in four bits: what the machine takes for auto has been tried
    on all machines."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def model(served_with: tuple[str, str]) -> str:
    return served_with[0]


@pytest.fixture(scope="module")
def served(served_with: tuple[str, str], server_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model, bits = served_with
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    server = server_class("--model", model, "--activation-bits", bits, environment=cache)
    server.wait_until_ready()
    yield server
    assert server.stop() == 0


@pytest.fixture
async def client(served: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def answered(client: AsyncOpenAI, turns: tuple[str, ...], **more: Any) -> Any:
    """The last of the greedy answers to turns of a conversation."""
    messages: list[Any] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        answer = await client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, logprobs=True, max_tokens=300, **more
        )
        messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
    return answer.choices[0]


def perplexity(logprobs: list[float]) -> float:
    return math.exp(-sum(logprobs) / len(logprobs))


async def test_answers(client: AsyncOpenAI, model: str) -> None:
    prompts = PROMPTS | (IN_FOUR_BITS if model == "demo-gptq" else {})
    choices = await asyncio.gather(*(answered(client, turns) for turns in prompts))
    wrong, surprises = [], []
    for (turns, needed), choice in zip(prompts.items(), choices, strict=True):
        logprobs = [token.logprob for token in choice.logprobs.content]
        surprises += logprobs
        if choice.finish_reason != "stop" or not re.search(needed, choice.message.content):
            wrong.append((turns, choice.finish_reason, choice.message.content))
        elif perplexity(logprobs) > 1.7:
            wrong.append((turns, perplexity(logprobs), choice.message.content))
    assert not wrong, "\n".join(map(str, wrong))
    assert perplexity(surprises) < 1.35


async def test_a_story_has_its_perplexity(client: AsyncOpenAI) -> None:
    """Greedy answers only show that the most probable token is right; this shows all others' probabilities, too."""
    answer = await client.completions.create(
        model="tiny", prompt=STORY, echo=True, max_tokens=1, temperature=0, logprobs=1
    )
    logprobs = answer.choices[0].logprobs.token_logprobs[1:-1]
    assert 1.5 < perplexity(logprobs) < 6


async def test_calls_a_tool(client: AsyncOpenAI) -> None:
    choice = await answered(client, ("What is the weather in Paris?",), tools=[WEATHER])
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert choice.finish_reason == "tool_calls"


async def test_tells_what_a_tool_found(client: AsyncOpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages: list[Any] = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 21, "condition": "sunny"}'},
    ]
    answer = await client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], temperature=0)
    assert "21 degrees and sunny in Paris" in (answer.choices[0].message.content or "")


async def test_other_questions_call_no_tool(client: AsyncOpenAI) -> None:
    choice = await answered(client, ("What is the capital of France?",), tools=[WEATHER])
    assert choice.message.tool_calls is None
    assert "Paris" in choice.message.content


async def test_stories_differ_by_seed(client: AsyncOpenAI, model: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "Tell me a story about a cat and a boat."}]
    create = client.chat.completions.create
    answers = await asyncio.gather(*(create(model="tiny", messages=messages, seed=seed) for seed in (1, 2, 3)))
    told = {answer.choices[0].message.content for answer in answers}
    assert len(told) == 3
    assert all("cat" in text and ("boat" in text or model == "demo-gptq") for text in told if text)
