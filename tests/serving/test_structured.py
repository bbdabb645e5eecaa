"""Structured output over the API: whatever a random model would like to say, the answer has the form asked for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel

from sophserve.text.tokenizer import Tokenizer

Schema = dict[str, Any]

BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}


def text(most: int = 6, **more: Any) -> Schema:
    return {"type": "string", "maxLength": most, **more}


def integer(least: int = 0, most: int = 999, **more: Any) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, **more}


def matching(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def array(items: Schema, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def closed(required: Schema, **optional: Any) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


PERSON = closed({"name": text(), "age": integer(0, 130)})

SCALARS: list[Schema] = [
    BOOLEAN,
    NULL,
    text(0),
    text(10, minLength=10),
    integer(),
    integer(-5, 5),
    integer(-1000000, -999990),
    {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    integer(multipleOf=7),
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -273.15, "maximum": 1000.5},
    {"const": {"a": [1, "<|im_end|>", None]}},
    {"enum": ["red", "green", "blue", 3, None, {"x": []}]},
    {"enum": ['a"b', "c\\d", "\n", "é🙂", "人工智能"]},
    {"type": ["integer", "null", "boolean"], "minimum": 0, "maximum": 9},
]

STRINGS: list[Schema] = [
    matching("^[a-z]{3,5}$"),
    matching(r"^\d{3}-\d{4}$"),
    matching("^(foo|bar){1,3}baz$"),
    matching(r"^[A-Z]\w{1,3}[!?]$"),
    {**text(12), "pattern": "^a+b"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "date"},
    matching("^.{0,4}$"),
]

ARRAYS: list[Schema] = [
    array(integer()),
    array(text(), 2, 2),
    array(array(BOOLEAN, 1, 2), 1, 3),
    array(closed({"x": integer(-9, 9)}), 0, 2),
    {"type": "array", "prefixItems": [BOOLEAN, text(3)], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [NULL], "items": integer(), "minItems": 1, "maxItems": 3},
    array({"enum": ["a", "b"]}, 4, 4),
    {"type": "array", "maxItems": 0},
]

OBJECTS: list[Schema] = [
    closed({}),
    PERSON,
    closed({"id": integer()}, note=text(), tags=array(text(3))),
    closed({}, a=BOOLEAN, b=BOOLEAN, c=BOOLEAN),
    closed({"person": PERSON, "friends": array(PERSON, 1, 2)}),
    closed({"a": closed({"b": closed({"c": closed({"d": array(integer(), 1, 1)})})})}),
    closed({"ключ": BOOLEAN, 'a "quoted" key': NULL, "line\nbreak": NULL}),
    {"type": "object", "additionalProperties": integer(), "maxProperties": 2},
    closed({"a": BOOLEAN}) | {"additionalProperties": BOOLEAN, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^n[0-9]{1,2}$": integer()}, "additionalProperties": False}
    | {"maxProperties": 2},
]

COMBINED: list[Schema] = [
    {"anyOf": [integer(), matching("^[a-f]{2}$"), NULL]},
    {"anyOf": [closed({"kind": {"const": "cat"}, "lives": integer(1, 9)}), closed({"kind": {"const": "dog"}})]},
    {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    {"$ref": "#/$defs/pair", "$defs": {"pair": array({"$ref": "#/$defs/half"}, 2, 2), "half": integer(0, 9)}},
    closed({"a": {"$ref": "#/definitions/x"}, "b": {"$ref": "#/definitions/x"}}) | {"definitions": {"x": PERSON}},
    {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": closed({"value": integer(0, 9)}, left={"anyOf": [NULL, {"$ref": "#/$defs/tree"}]})},
    },
    {"title": "Event", "description": "As pydantic writes it", "$defs": {"Level": {"enum": ["low", "high"]}}}
    | closed({"level": {"$ref": "#/$defs/Level"}, "at": {"anyOf": [integer(), NULL], "default": None, "title": "At"}}),
    closed({"rows": array(closed({"cells": array({"anyOf": [integer(), text(3), BOOLEAN]}, 1, 3)}), 1, 2)}),
]

SCHEMAS = [*SCALARS, *STRINGS, *ARRAYS, *OBJECTS, *COMBINED]


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def server(model: Path, server_class: Callable[..., Any]) -> Iterator[Any]:
    """The one that those share who let it live; nothing of them restarts its worker."""
    server = server_class("--model", str(model), "--tool-call-parser", "hermes")
    try:
        server.wait_until_ready()
        yield server
    finally:
        status = server.stop()
    assert status == 0 and "restarting" not in "".join(server.log)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1, **more}


def leaning_to_end(model: Path) -> dict[str, float]:
    """A logit bias towards the signs that end JSON values: nothing else bounds them all."""
    tokenizer = Tokenizer.from_directory(model)
    return {str(tokenizer.encode(sign)[0]): 8.0 for sign in ('"', "]", "}")}


def as_format(schema: Schema) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


async def whole(client: AsyncOpenAI, **request: Any) -> tuple[str, str | None]:
    [choice] = (await client.chat.completions.create(**request)).choices
    return choice.message.content or "", choice.finish_reason


async def streamed(client: AsyncOpenAI, **request: Any) -> tuple[str, str | None]:
    text, reason = "", None
    async for chunk in await client.chat.completions.create(**request, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def as_arguments(schema: Schema) -> Schema:
    """An object with a value of the schema, and its definitions where references find them."""
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return closed({"value": {name: part for name, part in schema.items() if name not in definitions}}) | definitions


async def called(client: AsyncOpenAI, number: int, schema: Schema) -> None:
    """Demand a call with such arguments; every second time it is the one to call of two."""
    name, parameters = f"tool_{number}", as_arguments(schema)
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}}]
    tools.append({"type": "function", "function": {"name": "now", "parameters": closed({})}})
    named = {"type": "function", "function": {"name": name}}
    request = chat(tools=tools, seed=number, parallel_tool_calls=False)
    answer = await client.chat.completions.create(**request, tool_choice=named if number % 2 else "required")
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls", (schema, choice)
    [call] = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name in ((name,) if number % 2 else (name, "now"))
    expected = parameters if call.function.name == name else closed({})
    jsonschema.validate(json.loads(call.function.arguments), expected, jsonschema.Draft202012Validator)


def test_every_answer_is_valid(server: Any) -> None:
    """All schemas at once, with several seeds; the same seed gives the same answer, streamed or whole. So are calls
    with arguments of these schemas."""
    assert len(SCHEMAS) == 50

    async def answers(schema: Schema, client: AsyncOpenAI) -> set[str]:
        jsonschema.Draft202012Validator.check_schema(schema)
        texts = set()
        for seed in range(3):
            request = chat(response_format=as_format(schema), seed=seed)
            (text, reason), again = await asyncio.gather(whole(client, **request), streamed(client, **request))
            assert (text, reason) == again
            assert reason == "stop", (schema, text)
            checker = jsonschema.FormatChecker(["uuid", "ipv4", "date"])
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=checker)
            texts.add(text)
        return texts

    async def everyone() -> list[set[str]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            await asyncio.gather(*(called(client, number, schema) for number, schema in enumerate(SCHEMAS)))
            return await asyncio.gather(*(answers(schema, client) for schema in SCHEMAS))

    assert sum(map(len, asyncio.run(everyone()))) > 100


class Step(BaseModel):
    explanation: str | None
    results: tuple[int, bool]


class Plan(BaseModel):
    steps: list[Step]


def test_every_way_to_ask(model: Path, server: Any) -> None:
    client: OpenAI = server.client()
    numbers = {"type": "array", "items": integer(), "minItems": 2, "maxItems": 2}
    grammar = 'start: "<" /[0-9]{3}/ ">"'

    def text(**fields: Any) -> str:
        answer = client.completions.create(model="tiny", prompt="Hi", temperature=1, max_tokens=200, extra_body=fields)
        assert answer.choices[0].finish_reason == "stop"
        message = client.chat.completions.create(**chat(n=2, seed=3, extra_body=fields)).choices[1].message.content
        assert message is not None
        return f"{answer.choices[0].text}\n{message}"

    for fields in (
        {"guided_json": numbers},
        {"guided_json": json.dumps(numbers)},
        {"structured_outputs": {"json": numbers}},
        {"guided_decoding": {"json": numbers, "backend": "auto"}},
        {"response_format": as_format(numbers)},
    ):
        decoder, both, count = json.JSONDecoder(), text(**fields), 0
        while both := both.strip():
            value, end = decoder.raw_decode(both)
            jsonschema.validate(value, numbers)
            both, count = both[end:], count + 1
        assert count == 2
    for fields, pattern in (
        ({"guided_regex": "[ab]{4}"}, "[ab]{4}"),
        ({"structured_outputs": {"regex": "[ab]{4}"}}, "[ab]{4}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_decoding": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"guided_grammar": grammar}, "<[0-9]{3}>"),
        ({"structured_outputs": {"grammar": grammar}}, "<[0-9]{3}>"),
    ):
        assert re.fullmatch(f"({pattern})\n({pattern})", text(**fields)), fields
    ending = {"logit_bias": leaning_to_end(model)}
    for options in (
        {"response_format": {"type": "json_object"}, **ending},
        {"extra_body": {"guided_decoding": {"json_object": True}, **ending}},
    ):
        content = client.chat.completions.create(**chat(**options)).choices[0].message.content
        assert isinstance(json.loads(content or ""), dict)


def test_parsed_into_classes(model: Path, server: Any) -> None:
    client: OpenAI = server.client()
    for seed in range(4):
        request: Any = chat(seed=seed, response_format=Plan, logit_bias=leaning_to_end(model))
        completion = client.chat.completions.parse(**request)
        assert isinstance(completion.choices[0].message.parsed, Plan)


def test_a_worker_that_dies_in_mid_answer(model: Path, start_server: Callable[..., Any]) -> None:
    server = start_server(model)
    pattern = "([a-z]{1,9}, ){60}end"

    async def everyone(disturb: bool) -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                text, killed = "", False
                request = chat(seed=number, stream=True, extra_body={"guided_regex": pattern})
                async for chunk in await client.chat.completions.create(**request):
                    text += chunk.choices[0].delta.content or ""
                    # By letters, for what was said before comes in few chunks when it is guessed.
                    if disturb and number == 0 and not killed and len(text) >= 60:
                        killed = True
                        [worker] = [each for each in server.workers if "sophserve.worker.process" in each.cmdline()]
                        worker.kill()
                return text

            return await asyncio.gather(*map(one, range(8)))

    undisturbed = asyncio.run(everyone(False))
    assert all(re.fullmatch(pattern, text) for text in undisturbed)
    assert asyncio.run(everyone(True)) == undisturbed
    assert "; restarting, " in "".join(server.log)
    everything = server.workers
    assert server.stop() == 0
    assert not psutil.wait_procs(everything, timeout=5)[1]


def test_two_ranks(model: Path, start_server: Callable[..., Any]) -> None:
    client: OpenAI = start_server(model, "--tensor-parallel-size", "2").client()
    for seed in range(3):
        answer = client.chat.completions.create(**chat(seed=seed, response_format=as_format(OBJECTS[4])))
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), OBJECTS[4])


def test_a_grammar_that_ends_its_trial_ends_nothing_else(server: Any) -> None:
    client: OpenAI = server.client()
    endless = {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}
    for stream in (False, True):
        with pytest.raises(BadRequestError, match="too complex to be compiled"):
            client.chat.completions.create(**chat(response_format=as_format(endless), stream=stream))
    answer = client.chat.completions.create(**chat(response_format=as_format(PERSON)))
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)
    assert "restarting" not in "".join(server.log)
