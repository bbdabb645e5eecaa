"""Whatever Anthropic's routes answer is of the types of Anthropic's client: with no field more, and none less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.shared import ErrorResponse
from pydantic import BaseModel, TypeAdapter

from sophserve.api.anthropic.messages import CountRequest, MessagesRequest
from sophserve.api.http import body as bodies
from sophserve.errors import EngineDeadError
from sophserve.text.chat_template import ChatTemplate

PATH = "/v1/messages"
FIELDS: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": "The fox"}]}
TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ':' + (message.reasoning_content or '') + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' + ('<think>' if enable_thinking else '') }}{%- endif %}"""
THOUGHT = "<think>\nHm.\nOK.\n</think>\n\n"
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
TOOLS: list[Any] = [
    {"name": "f", "input_schema": {"type": "object", "properties": {"a": {}}}},
    {"name": "g", "description": "G.", "input_schema": {"type": "object"}},
]
TURNS: list[Any] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "g", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]},
]
FORM = {"type": "json_schema", "schema": {"type": "object", "properties": {}, "additionalProperties": False}}
SAID: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("", {}),
    (None, {"max_tokens": 2, "system": "Be brief.", "temperature": 0.5, "top_k": 5}),
    ("One. STOP", {"stop_sequences": ["STOP"]}),
    (CALLS, {"tools": TOOLS}),
    (CALLS, {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "messages": TURNS}),
    (THOUGHT + CALLS, {"tools": TOOLS, "thinking": {"type": "adaptive"}}),
    (THOUGHT + "Yes.", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (THOUGHT + "Yes.", {"thinking": {"type": "adaptive", "display": "omitted"}}),
    (THOUGHT, {"output_config": {"effort": "low"}}),
    ("{}", {"output_config": {"format": FORM}}),
]
# What only Anthropic's own servers have: containers, tools that they run, places and tiers of service.
ABSENT = {
    *("container", "diagnostics", "citations", "caller", "toolset_name"),
    *("cache_creation", "inference_geo", "server_tool_use", "service_tier", "speed"),
}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


def gaps(kind: Any, answer: str) -> list[str]:
    """The fields of an answer that its type does not have, and those of the type that the answer does not have."""
    return sorted(_gaps(TypeAdapter(kind).validate_json(answer, strict=True), ""))


def _gaps(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}{name}: unknown" for name in value.model_extra or {})
        absent = type(value).model_fields.keys() - value.model_fields_set - ABSENT
        yield from (f"{path}{name}: missing" for name in absent)
        for name in value.model_fields_set & type(value).model_fields.keys():
            yield from _gaps(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for each in value:
            yield from _gaps(each, path)


async def events(app: Any, body: dict[str, Any]) -> list[str]:
    """The data of a stream, whose names are their types."""
    async with app.http.post(PATH, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == [json.loads(each)["type"] for each in data]
    return data


@pytest.mark.parametrize(("text", "fields"), SAID)
async def test_answers(app: Any, text: str | None, fields: dict[str, Any]) -> None:
    app.engine.text = text
    body = FIELDS | fields
    TypeAdapter(MessageCreateParamsNonStreaming).validate_python(body)
    async with app.http.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()
        assert not gaps(Message, await response.text())
    for event in await events(app, body):
        assert not gaps(RawMessageStreamEvent, event)


async def test_counts_and_models(app: Any) -> None:
    async with app.http.post(f"{PATH}/count_tokens", json=FIELDS) as response:
        assert not gaps(MessageTokensCount, await response.text())
    version = {"anthropic-version": "2023-06-01"}
    async with app.http.get("/v1/models/tiny", headers=version) as response:
        assert not gaps(ModelInfo, await response.text())
    async with app.http.get("/v1/models", headers=version) as response:
        page = await response.json()
    assert page.keys() == {"data", "has_more", "first_id", "last_id"}
    for model in page["data"]:
        assert not gaps(ModelInfo, json.dumps(model))


async def test_errors(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, where, body, expected in (
        ("POST", PATH, {}, 400),
        ("POST", PATH, FIELDS | {"model": "nobody"}, 404),
        ("POST", f"{PATH}/x", FIELDS, 404),
        ("PATCH", PATH, FIELDS, 405),
        ("POST", PATH, FIELDS | {"messages": [{"role": "user", "content": "fox " * 3000}]}, 400),
    ):
        async with app.http.request(method, where, json=body) as response:
            assert response.status == expected, await response.text()
            assert not gaps(ErrorResponse, await response.text())
            assert (await response.json())["request_id"] == response.headers["X-Request-Id"]
    add = app.engine._add_token

    def fail(sequence: Any, *said: Any) -> None:
        add(sequence, *said)
        if len(sequence.request.output) == 3:
            app.engine.failure = EngineDeadError("the worker is gone")

    monkeypatch.setattr(app.engine, "_add_token", fail)
    *before, error = await events(app, FIELDS)
    assert before and not gaps(ErrorResponse, error)
    for event in before:
        assert not gaps(RawMessageStreamEvent, event)


@pytest.mark.parametrize(
    ("kind", "asked"), [(MessagesRequest, MessageCreateParamsNonStreaming), (CountRequest, MessageCountTokensParams)]
)
def test_every_field_of_requests_is_known(kind: Any, asked: Any) -> None:
    """Used, without effect and said so, or refused."""
    names = {name for each in asked.__mro__ for name in getattr(each, "__annotations__", {})}
    names |= asked.__required_keys__ | asked.__optional_keys__
    known = bodies._WITHOUT_EFFECT | bodies._NOTED | bodies._UNSUPPORTED
    assert len(names) > 6 and not names - set(kind.__struct_fields__) - known
