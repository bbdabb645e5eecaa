"""The many ways to ask for a JSON schema: each one's schema is made ready, and the client hears what is not kept to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Hi"}]
INNER = {"type": "object", "properties": {"when": {"type": "string", "format": "shoe-size"}}, "required": ["when"]}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"inner": INNER}, "required": ["inner"]}
READY = {
    "type": "object",
    "properties": {
        "inner": {
            "type": "object",
            "properties": {"when": {"type": "string"}},
            "required": ["when"],
            "additionalProperties": False,
        }
    },
    "required": ["inner"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "name": "s", "schema": SCHEMA}
RESPONSE_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((path, RESPONSE_FORMAT) for path in (CHAT, TEXT)),
    *((path, {"structured_outputs": {"json": SCHEMA}}) for path in (CHAT, TEXT)),
    (CHAT, {"structured_outputs": {"json": json.dumps(SCHEMA)}}),
    (CHAT, {"guided_decoding": {"json": SCHEMA}}),
    (TEXT, {"guided_json": SCHEMA}),
    (RESPONSES, {"text": {"format": NAMED}}),
    (MESSAGES, {"output_config": {"format": NAMED}}),
    (MESSAGES, {"output_format": NAMED}),
    # As llama.cpp takes them.
    (CHAT, {"response_format": {"type": "json_object", "schema": SCHEMA}}),
    (TEXT, {"response_format": {"type": "json_schema", "schema": SCHEMA}}),
]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    TEXT: {"prompt": "Hi"},
    RESPONSES: {"input": "Hi"},
    MESSAGES: {"messages": HELLO, "max_tokens": 9},
}


async def warnings_of(app: Any, path: str, body: dict[str, Any]) -> str:
    async with app.http.post(path, json=BODIES[path] | body) as response:
        assert response.status == 200, await response.text()
        return response.headers.get("X-Sophserve-Warnings", "")


@pytest.mark.parametrize("padding", [0, 40_000])
async def test_every_form(app: Any, padding: int) -> None:
    """Members that are not declared are not invited, and unknown formats are annotations; that is so as well for a
    body that is long enough to be read in a thread."""
    for path, form in FORMS:
        warning = await warnings_of(app, path, form | {"user": "x" * padding})
        assert warning == "not kept to: 'format shoe-size of #/properties/inner/properties/when'", (path, form)
        structured = app.engine.params[-1].structured
        assert structured.kind == "json_schema" and json.loads(structured.value) == READY
    ready = json.loads(json.dumps(RESPONSE_FORMAT).replace(json.dumps(SCHEMA), json.dumps(READY)))
    assert not await warnings_of(app, CHAT, ready)


def as_tool(path: str, strict: bool | None) -> dict[str, Any]:
    """A tool with the schema."""
    fields: dict[str, Any] = {"name": "f"} | ({} if strict is None else {"strict": strict})
    if path == MESSAGES:
        return fields | {"input_schema": SCHEMA}
    fields["parameters"] = SCHEMA
    return {"type": "function", "function": fields} if path == CHAT else {"type": "function"} | fields


async def test_tools(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{# <tool_call> #}{{ messages[0].content }}{{ tools }}"}, {})
    for path in (CHAT, RESPONSES, MESSAGES):
        demanded = {"type": "any"} if path == MESSAGES else "required"
        for strict, choice in ((None, {"tool_choice": demanded}), (False, {"tool_choice": demanded}), (True, {})):
            warning = await warnings_of(app, path, {"tools": [as_tool(path, strict)]} | choice)
            assert warning == "not kept to: 'format shoe-size of f/properties/inner/properties/when'"
            value = app.engine.params[-1].structured.value
            schema, _ = json.JSONDecoder().raw_decode(value, value.index("%json ") + len("%json "))
            assert schema.pop("x-guidance") and schema == READY
        # Where nothing is demanded of the arguments there is nothing to tell.
        assert not await warnings_of(app, path, {"tools": [as_tool(path, False)]})


async def test_a_form_beside_tools(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{# <tool_call> #}{{ tools }}{{ messages[0].content }}"}, {})
    warning = await warnings_of(app, CHAT, RESPONSE_FORMAT | {"tools": [as_tool(CHAT, None)]})
    assert warning == "not kept to: 'format shoe-size of #/properties/inner/properties/when'"
    assert json.dumps(READY)[:-1] in app.engine.params[-1].structured.value


@pytest.mark.parametrize("schema", ["{", "[1]", '{"a": 1e999}', '{"not":' * 3000 + "{}" + "}" * 3000])
async def test_schemas_that_cannot_be_read(app: Any, schema: str) -> None:
    for path in (CHAT, TEXT):
        status, answer = await app.post(path, BODIES[path] | {"guided_json": schema})
        assert status == 400 and answer["error"]["param"] == "guided_json", answer


async def test_a_group_without_a_constraint(app: Any) -> None:
    """Such as one whose name is mistyped, which an answer would not keep to."""
    for group in ("structured_outputs", "guided_decoding"):
        for value in ({}, {"jsonschema": SCHEMA}, {"json": None}):
            status, answer = await app.post(CHAT, BODIES[CHAT] | {group: value})
            assert status == 400 and answer["error"]["param"] == group and "no constraint" in answer["error"]["message"]
        assert not await warnings_of(app, CHAT, {group: {"json_object": False}})


async def test_patterns_that_meet_declared_members(app: Any) -> None:
    """Such a schema is followed to its end, in calls as well."""
    app.serving.chat_template = ChatTemplate({"default": "{# <tool_call> #}{{ tools }}{{ messages[0].content }}"}, {})
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema |= {"additionalProperties": False, "patternProperties": {"^a$": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert not await warnings_of(app, CHAT, {"guided_json": schema})
    assert not await warnings_of(app, CHAT, {"tools": [tool], "tool_choice": "required"})
