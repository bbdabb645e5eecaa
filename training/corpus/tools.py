"""Conversations with functions to call, in the form of an OpenAI request's messages and tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from training.corpus.conversation import filled
from training.corpus.fact_tables import COUNTRIES

Message = dict[str, Any]

CITIES = (
    *(city for _, city, _ in COUNTRIES if city.isalpha()),
    "New York", "San Francisco", "Shanghai", "Munich", "Hamburg", "Boston", "Seattle", "Chicago", "Barcelona",
    "Milan", "Lyon", "Geneva", "Sydney", "Osaka", "Shenzhen", "Hangzhou", "Mumbai", "Toronto", "Los Angeles",
)  # fmt: skip
CHINESE_CITIES = ("北京", "上海", "广州", "杭州", "南京", "成都", "东京", "巴黎")
SKIES = ("sunny", "cloudy", "rainy", "windy", "clear", "foggy")
CHINESE_SKIES = ("晴天", "多云", "下雨", "有风")


class Function(NamedTuple):
    """A kind of function: names and descriptions it may have, and the questions that ask for it."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    arguments: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]
    result: Callable[[Random, str], tuple[dict[str, Any], str]]
    type: str = "string"


def _made_up(random: Random) -> str:
    """A name that no table has, so that it has to be copied."""
    syllables = random.choices(("ba", "den", "ford", "ka", "lan", "li", "mor", "na", "ro", "sten", "ta", "vi"), k=3)
    return "".join(syllables[: random.choice((2, 3))]).capitalize()


def _weather(random: Random, city: str) -> tuple[dict[str, Any], str]:
    degrees, sky = random.randint(-5, 35), random.choice(SKIES)
    key = random.choice(("temperature", "temperature_celsius", "degrees", "temp"))
    key_of_sky = random.choice(("condition", "sky", "weather", "conditions"))
    return {key: degrees, key_of_sky: sky}, f"It is {degrees} degrees and {sky} in {city}."


def _chinese_weather(random: Random, city: str) -> tuple[dict[str, Any], str]:
    degrees, sky = random.randint(-5, 35), random.choice(CHINESE_SKIES)
    return {"temperature": degrees, "condition": sky}, f"{city}现在{sky}，气温 {degrees} 度。"


def _time(random: Random, city: str) -> tuple[dict[str, Any], str]:
    time = f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    return {random.choice(("time", "local_time")): time}, f"It is {time} in {city} now."


def _population(random: Random, city: str) -> tuple[dict[str, Any], str]:
    millions = random.randint(1, 30)
    return {"population_millions": millions}, f"About {millions} million people live in {city}."


def _price(random: Random, thing: str) -> tuple[dict[str, Any], str]:
    price = random.randint(1, 90)
    return {"price": price, "currency": "EUR"}, f"The {thing} costs {price} euros."


def _sent(random: Random, name: str) -> tuple[dict[str, Any], str]:
    return {"status": "sent"}, f"I have sent the message to {name}."


def _booked(random: Random, city: str) -> tuple[dict[str, Any], str]:
    number = random.randint(100, 999)
    return {"booking": number}, f"I have booked a hotel in {city}. The number of the booking is {number}."


THINGS = ("lamp", "book", "bicycle", "table", "chair", "kite", "drum", "hat", "umbrella", "bell", "coat", "clock")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Lily", "Max", "Tom")

FUNCTIONS = (
    Function(
        ("get_weather", "get_current_weather", "weather", "current_weather", "get_weather"),
        (
            "Get the weather in a city.", "Get the current weather in a given location", "Current weather of a place",
            "Get current temperature for a given location.", "Returns the weather.", "",
        ),
        ("location", "city", "city", "location", "place"),
        (
            "What is the weather in {value}?", "What's the weather in {value}?", "what is the weather in {value}",
            "How is the weather in {value}?", "What is the weather like in {value} today?", "Is it raining in {value}?",
            "What's the weather like in {value}?", "Weather in {value}?", "Tell me the weather in {value}.",
            "weather in {value} please", "How warm is it in {value}?", "What is the temperature in {value}?",
            "Is it cold in {value}?", "Is it sunny in {value} now?",
            "Do I need an umbrella in {value}?", "Can you tell me the weather in {value}?",
        ),
        CITIES, _weather,
    ),
    Function(
        ("get_weather", "get_current_weather"),
        ("Get the weather in a city.", "查询城市的天气", "获取天气", ""),
        ("location", "city"),
        (
            "{value}的天气怎么样？", "{value}今天天气怎么样?", "{value}天气如何？", "今天{value}下雨吗？",
            "查一下{value}的天气。", "{value}现在多少度？",
        ),
        CHINESE_CITIES, _chinese_weather,
    ),
    Function(
        ("get_time", "get_current_time", "local_time"),
        ("Get the time in a city.", "Current local time of a place", ""),
        ("city", "location", "timezone"),
        (
            "What time is it in {value}?", "what time is it in {value} now", "Tell me the time in {value}.",
            "How late is it in {value}?",
        ),
        CITIES, _time,
    ),
    Function(
        ("get_population", "population"),
        ("How many people live in a city.", "Number of inhabitants"),
        ("city", "name"),
        ("How many people live in {value}?", "What is the population of {value}?", "How big is {value}?"),
        CITIES, _population,
    ),
    Function(
        ("get_price", "price_of", "find_price"),
        ("Get the price of a thing in the shop.", "Price of a product", ""),
        ("product", "item", "name"),
        ("How much does the {value} cost?", "What is the price of the {value}?", "Tell me the price of the {value}."),
        THINGS, _price,
    ),
    Function(
        ("send_message", "send_email", "write_to"),
        ("Send a message to a person.", "Sends an email", ""),
        ("to", "recipient", "person"),
        ("Send a message to {value}.", "Write a message to {value}, please.", "Can you send {value} a message?"),
        NAMES, _sent,
    ),
    Function(
        ("book_hotel", "reserve_hotel"),
        ("Book a hotel in a city.", "Reserves a room"),
        ("city", "location"),
        ("Book a hotel in {value}.", "I need a hotel in {value}.", "Can you book a room in {value}?"),
        CITIES, _booked,
    ),
)  # fmt: skip
WEIGHTS = (12, 3, 3, 1.5, 2, 1.5, 1)


def conversation(random: Random, distraction: Callable[[], list[Message]]) -> tuple[list[Message], list[Message]]:
    """Messages and tools: some questions need a call of a tool, others (those of distraction) none."""
    chosen = random.choices(FUNCTIONS, WEIGHTS)[0]
    others = [function for function in FUNCTIONS if not set(function.names) & set(chosen.names)]
    offered = [chosen, *random.sample(others, random.choice((0, 0, 0, 1, 1, 2)))]
    random.shuffle(offered)
    named = {function: _named(random, function) for function in offered}
    messages: list[Message] = []
    if random.random() < 0.2:
        messages += distraction()
    for _ in range(random.choice((1, 1, 1, 2))):
        function = chosen if random.random() < 0.8 else random.choice(offered)
        messages += _called(random, function, named[function])
    if random.random() < 0.2:
        messages += distraction()
    return messages, [_schema(random, function, *named[function]) for function in offered]


def without_call(random: Random, distraction: Callable[[], list[Message]]) -> tuple[list[Message], list[Message]]:
    """Messages and tools of a conversation in which no tool is needed."""
    offered = random.sample(FUNCTIONS, random.choice((1, 1, 2)))
    return distraction(), [_schema(random, function, *_named(random, function)) for function in offered]


def _named(random: Random, function: Function) -> tuple[str, str]:
    return random.choice(function.names), random.choice(function.arguments)


def _schema(random: Random, function: Function, name: str, argument: str) -> Message:
    described: dict[str, Any] = {"type": function.type}
    if random.random() < 0.3:
        described["description"] = f"The {argument}"
    parameters: dict[str, Any] = {"type": "object", "properties": {argument: described}}
    if random.random() < 0.2:
        parameters["properties"]["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    if random.random() < 0.75:
        parameters["required"] = [argument]
    if random.random() < 0.2:
        parameters["additionalProperties"] = False
    description = random.choice(function.descriptions)
    schema = {"name": name} | ({"description": description} if description else {}) | {"parameters": parameters}
    return {"type": "function", "function": schema}


def _called(random: Random, function: Function, named: tuple[str, str]) -> list[Message]:
    value = _made_up(random) if function.values is CITIES and random.random() < 0.25 else random.choice(function.values)
    name, argument = named
    result, answer = function.result(random, value)
    if random.random() < 0.3:
        result = {argument: value} | result
    call = {"type": "function", "function": {"name": name, "arguments": {argument: value}}}
    asked: list[Message] = [
        {"role": "user", "content": filled(random, function.questions, value=value)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    if random.random() < 0.4:
        return asked
    content = json.dumps(result, ensure_ascii=False) if random.random() < 0.8 else answer
    return [*asked, {"role": "tool", "content": content}, {"role": "assistant", "content": answer}]
