"""Tool calls, reasoning and structured output over /v1/messages, as Anthropic's client sees them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from pydantic import BaseModel

from sophserve.text.chat_template import ChatTemplate

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [
    {"name": "f", "input_schema": {"type": "object", "properties": {"a": {}}}},
    {"name": "g", "description": "G.", "input_schema": {"type": "object"}},
]
TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ':' + (message.reasoning_content or '') + '|' + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' + ('<think>' if enable_thinking else '') }}{%- endif %}"""
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
THOUGHT = "<think>\nHm.\nOK.\n</think>\n\n"
FIELDS: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 1000}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


def comparable(message: Any) -> dict[str, Any]:
    """A message without what differs each time."""
    fields = message.model_dump(exclude={"id"})
    for block in fields["content"]:
        if "id" in block:
            assert block.pop("id").startswith("toolu_")
        block.pop("parsed_output", None)
    return fields


def assert_well_formed(events: list[Any]) -> None:
    """Blocks come one after the other, each opened, filled with deltas of its own kind, and closed."""
    deltas = {
        "text": {"text_delta"},
        "thinking": {"thinking_delta", "signature_delta"},
        "tool_use": {"input_json_delta"},
    }
    assert events[0].type == "message_start" and events[0].message.content == []
    assert [event.type for event in events[-2:]] == ["message_delta", "message_stop"]
    index, kind = -1, None
    for event in events[1:-2]:
        match event.type:
            case "content_block_start":
                assert kind is None and event.index == index + 1
                index, kind = event.index, event.content_block.type
                empty = event.content_block.model_dump(exclude_unset=True)
                assert not (empty.get("text") or empty.get("thinking") or empty.get("input") or empty.get("signature"))
            case "content_block_delta":
                assert kind is not None and event.index == index and event.delta.type in deltas[kind]
            case "content_block_stop":
                assert kind is not None and event.index == index
                kind = None
            case other:
                raise AssertionError(other)
    assert kind is None


async def assert_same_streamed(client: AsyncAnthropic, **fields: Any) -> Any:
    """Ask both ways; returns the message that is not streamed."""
    whole = await client.messages.create(**fields)
    assert_well_formed([event async for event in await client.messages.create(**fields, stream=True)])
    async with client.messages.stream(**fields) as stream:
        final = await stream.get_final_message()
    assert comparable(final) == comparable(whole)
    return whole


async def test_calls(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = CALLS
    message = await assert_same_streamed(client, **FIELDS, tools=TOOLS)
    text, first, second = message.content
    assert (text.type, text.text) == ("text", "Let me see.")
    assert (first.type, first.name, first.input) == ("tool_use", "f", {"a": [1, "é"]})
    assert (second.type, second.name, second.input) == ("tool_use", "g", {})
    assert message.stop_reason == "tool_use" and first.id != second.id
    once = {"type": "auto", "disable_parallel_tool_use": True}
    message = await assert_same_streamed(client, **FIELDS, tools=TOOLS, tool_choice=once)
    assert [block.type for block in message.content] == ["text", "tool_use"]
    for fields in ({"tools": TOOLS, "tool_choice": {"type": "none"}}, {}):
        message = await assert_same_streamed(client, **FIELDS, **fields)
        assert [block.text for block in message.content] == [CALLS] and message.stop_reason == "end_turn"


async def test_reasoning(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = THOUGHT + CALLS
    message = await assert_same_streamed(client, **FIELDS, tools=TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Hm.\nOK." and message.content[0].signature
    app.engine.text = "Hm.</think>Yes."
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = await assert_same_streamed(client, **FIELDS, thinking=thinking)
    assert [block.model_dump().get("text", block.type) for block in message.content] == ["thinking", "Yes."]
    message = await assert_same_streamed(client, **FIELDS, thinking={"type": "adaptive", "display": "omitted"})
    assert message.content[0].thinking == "" and message.content[0].signature and message.content[1].text == "Yes."
    app.engine.text = "Yes."
    message = await assert_same_streamed(client, **FIELDS, thinking={"type": "disabled"})
    assert [block.type for block in message.content] == ["text"]


async def test_a_conversation_goes_on(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = THOUGHT + CALLS
    message = await client.messages.create(**FIELDS, tools=TOOLS)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"of {block.name}", "is_error": block.name == "g"}
        for block in message.content
        if block.type == "tool_use"
    ]
    turns: list[Any] = [*HELLO, {"role": "assistant", "content": message.content}]
    turns.append({"role": "user", "content": [*results, {"type": "text", "text": "And?"}]})
    app.engine.text = "ok"
    await client.messages.create(**FIELDS | {"messages": turns, "max_tokens": 9})
    assert app.prompt == (
        "user:|Hiassistant:Hm.\nOK.|Let me see."
        '<tool_call>{"name": "f", "arguments": {"a": [1, "é"]}}</tool_call><tool_call>{"name": "g", "arguments": {}}'
        "</tool_call>tool:|of ftool:|of guser:|And?<|im_start|>"
    )


async def test_tools_are_shown_and_counted(app: Any, client: AsyncAnthropic) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson }}" + TEMPLATE}, {})
    app.engine.text = "ok"
    tools = [TOOLS[1], {"type": "web_search_20250305", "name": "web_search"}]
    fields = FIELDS | {"max_tokens": 9}
    message = await client.messages.create(**fields, tools=tools)
    shown = {"type": "function", "function": {"name": "g", "description": "G.", "parameters": {"type": "object"}}}
    assert app.prompt == f"{json.dumps([shown])}user:|Hi<|im_start|>"
    count = await client.messages.count_tokens(model="tiny", messages=HELLO, tools=tools)
    assert count.input_tokens == message.usage.input_tokens


async def test_demanded_calls(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = CALLS
    for choice, several, names in (
        ({"type": "any"}, True, {"f", "g"}),
        ({"type": "any", "disable_parallel_tool_use": True}, False, {"f", "g"}),
        ({"type": "tool", "name": "g"}, False, {"g"}),
    ):
        await client.messages.create(**FIELDS, tools=TOOLS, tool_choice=choice)
        grammar = app.engine.params[-1].structured.value
        assert bool(re.search(r"call_\d+\)\*", grammar)) == several
        assert {name for name in "fg" if rf"{{\"name\": \"{name}\"" in grammar} == names


async def test_an_answer_that_is_cut_off(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = CALLS
    length = len(app.tokenizer.encode(CALLS))
    message = await assert_same_streamed(client, **FIELDS | {"max_tokens": length - 5}, tools=TOOLS)
    assert message.stop_reason == "max_tokens" and len(message.content) == 3


class Answer(BaseModel):
    yes: bool


async def test_structured_output(app: Any, client: AsyncAnthropic) -> None:
    app.engine.text = '{"yes": true}'
    message = await client.messages.parse(**FIELDS, output_format=Answer)
    assert message.parsed_output == Answer(yes=True)
    schema = json.loads(app.engine.params[-1].structured.value)
    assert schema["required"] == ["yes"] and not app.engine.params[-1].thought.inside
    form = {"type": "json_schema", "schema": {"type": "object"}}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        status, _ = await app.post("/v1/messages", FIELDS | {"thinking": thinking} | fields)
        params = app.engine.params[-1]
        assert status == 200 and params.structured.value == '{"type":"object"}' and params.thought.inside


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": {"type": "tool", "name": "h"}}, "'h', which is not among tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice must be"),
        ({"tool_choice": {"type": "any"}, "tools": []}, "tool_choice needs tools"),
        ({"tool_choice": {"type": "sometimes"}}, "tool_choice.type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "'f' is there already"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "name"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "type object"),
        ({"thinking": {"type": "maybe"}}, "thinking.type must be one of enabled"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "1"}]}]},
            "messages[0].content[0].tool_use_id: is missing",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]}]},
            "messages[0].content[0].name: is missing",
        ),
    ],
)
async def test_wrong_requests(app: Any, fields: dict[str, Any], words: str) -> None:
    status, answer = await app.post("/v1/messages", FIELDS | {"tools": TOOLS} | fields)
    assert status == 400 and words in answer["error"]["message"], answer
