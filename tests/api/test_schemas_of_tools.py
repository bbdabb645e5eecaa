"""Schemas of tools and of answers that a grammar cannot keep to in all they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
TEXTS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
LACKING = {"type": "object", "properties": {"ids": TEXTS}, "required": ["ids"], "additionalProperties": False}
FINE = {"type": "object", "properties": {}, "additionalProperties": False}
WARNING = "X-Sophserve-Warnings"
TEMPLATE = "{# <tool_call> #}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}"


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    app.engine.text = CALL
    return app


async def post(app: Any, api: str, schema: Any, strict: bool | None, choice: str = "required") -> tuple[int, str, str]:
    """Status, warnings and body of a request with two tools, f with that schema, of which the model must call one."""
    more = {} if strict is None else {"strict": strict}
    f, g = {"name": "f", **more}, {"name": "g"}
    if api == "messages":
        tools: Any = [f | {"input_schema": schema}, g | {"input_schema": FINE}]
        body: Any = {
            "messages": HELLO,
            "max_tokens": 99,
            "tool_choice": {"type": "any" if choice == "required" else choice},
        }
        path = "/v1/messages"
    elif api == "responses":
        tools = [{"type": "function", **f, "parameters": schema}, {"type": "function", **g, "parameters": FINE}]
        body, path = {"input": "Hi", "tool_choice": choice}, "/v1/responses"
    else:
        functions = [f | {"parameters": schema}, g | {"parameters": FINE}]
        tools = [{"type": "function", "function": function} for function in functions]
        body, path = {"messages": HELLO, "tool_choice": choice}, "/v1/chat/completions"
    async with app.http.post(path, json=body | {"tools": tools}) as response:
        return response.status, response.headers.get(WARNING, ""), await response.text()


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_keywords_that_a_grammar_lacks(app: Any, api: str) -> None:
    """OpenAI refuses uniqueItems of strict functions, and takes it of others."""
    status, warnings, text = await post(app, api, LACKING, None)
    assert status == 200 and "uniqueItems of f/properties/ids" in warnings, text
    grammar = app.engine.params[-1].structured.value
    assert "uniqueItems" not in grammar and r"\"f\"" in grammar and '"ids"' in grammar
    for choice in ("required", "auto"):
        status, _, text = await post(app, api, LACKING, True, choice)
        message = json.loads(text)["error"]["message"]
        assert status == 400 and "uniqueItems of f/properties/ids" in message, message
        assert "leave out strict" in message
        assert "start:" not in message and "lark" not in message and "%json" not in message
    status, warnings, text = await post(app, api, LACKING, None, "auto")
    assert status == 200 and not warnings and app.engine.params[-1].structured is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}}, "required": ["a"]}, "unsatisfiable"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "'/$defs/no' does not exist"),
        ({"properties": {"a": {"type": "any"}}}, "Invalid type: any"),
        ({"properties": {"a": {"pattern": "("}}}, "unclosed group"),
    ],
)
async def test_schemas_that_no_grammar_takes(app: Any, schema: Any, words: str) -> None:
    """One such tool does not refuse all: it is called with any object, and a strict one is named."""
    status, warnings, text = await post(app, "chat", {"type": "object"} | schema, None)
    assert status == 200 and "the schema of f" in warnings, text
    grammar = app.engine.params[-1].structured.value
    assert r"{\"name\": \"f\"" in grammar and r"{\"name\": \"g\"" in grammar
    status, _, text = await post(app, "chat", {"type": "object"} | schema, True)
    message = json.loads(text)["error"]["message"]
    assert status == 400 and words in message and "the schema of f " in message, message
    assert "start:" not in message and "lark" not in message and "%json" not in message


async def test_schemas_that_are_too_large_together(app: Any) -> None:
    large = {"type": "object", "properties": {f"p{number}": {"enum": ["x" * 1000]} for number in range(300)}}
    for strict in (None, True):
        status, _, text = await post(app, "chat", large, strict)
        message = json.loads(text)["error"]["message"]
        assert status == 400 and "at most 262144 are possible" in message and "lark" not in message, message


async def test_schemas_that_calls_in_python_cannot_say(app: Any, start_app: Any) -> None:
    """The names of the arguments are kept to all the same."""
    app = await start_app(tool_call_parser="pythonic")
    app.engine.text = "[f(a=1)]"
    choices = {"type": "object", "properties": {"a": {"type": "integer"}}, "anyOf": [{"required": ["a"]}]}
    status, warnings, text = await post(app, "chat", choices, None)
    assert status == 200 and "the schema of f" in warnings, text
    assert (
        '"a="' in app.engine.params[-1].structured.value and '"integer"' not in app.engine.params[-1].structured.value
    )
    status, _, text = await post(app, "chat", choices, True)
    assert status == 400 and "f: anyOf cannot be kept to" in text, text


@pytest.mark.parametrize("strict", [None, False, True])
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_forms_with_keywords_that_a_grammar_lacks(app: Any, api: str, strict: bool | None) -> None:
    form = {"type": "json_schema", "name": "x", "schema": LACKING, "strict": strict}
    if api == "chat":
        body: Any = {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": form}}
        path = "/v1/chat/completions"
    else:
        body, path = {"input": "Hi", "text": {"format": form}}, "/v1/responses"
    async with app.http.post(path, json=body) as response:
        text, warnings = await response.text(), response.headers.get(WARNING, "")
    if strict:
        assert response.status == 400 and "uniqueItems of #/properties/ids" in text, text
    else:
        assert response.status == 200 and "uniqueItems of #/properties/ids" in warnings, text
        assert "uniqueItems" not in app.engine.params[-1].structured.value


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": LACKING}}}),
        ("/v1/chat/completions", {"guided_json": LACKING}),
        ("/v1/chat/completions", {"structured_outputs": {"json": LACKING}}),
    ],
)
async def test_forms_that_are_always_strict(app: Any, path: str, fields: dict[str, Any]) -> None:
    """Anthropic refuses what its structured outputs cannot keep to, and the others have no other word for it."""
    status, answer = await app.post(path, {"messages": HELLO} | fields)
    assert status == 400 and "uniqueItems of #/properties/ids" in answer["error"]["message"], answer
