"""Tool calls, reasoning and structured output over /v1/responses, as the official client sees them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel

from sophserve.text.chat_template import ChatTemplate

TOOLS: list[Any] = [
    {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
    {"type": "function", "name": "g", "parameters": None},
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
FIELDS: dict[str, Any] = {"model": "tiny", "input": "Hi"}
# What each kind of item consists of, between its first event and its last.
EVENTS = {
    "message": ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"],
    "reasoning": ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"],
    "function_call": ["function_call_arguments.delta", "function_call_arguments.done"],
}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


def comparable(response: Any) -> dict[str, Any]:
    """A response without what differs each time."""
    fields = response.model_dump(exclude={"id", "created_at", "completed_at"})
    for item in fields["output"]:
        for name in ("id", "call_id"):
            if name in item:
                item[name] = item[name].partition("_")[0]
        item.pop("parsed_arguments", None)
        for part in item.get("content") or []:
            part.pop("parsed", None)
    return fields


def assert_well_formed(events: list[Any]) -> None:
    """Items come one after the other, each with the events of its kind, whose deltas add up to what ends them."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1].response
    assert events[-1].type == f"response.{final.status}"
    middle = events[2:-1]
    for index, item in enumerate(final.output):
        own = [event for event in middle if event.output_index == index]
        assert middle[: len(own)] == own
        middle = middle[len(own) :]
        assert own[0].type == "response.output_item.added" and own[0].item.status == "in_progress"
        assert own[-1].type == "response.output_item.done" and own[-1].item == item
        assert own[0].item.id == item.id and own[0].item.type == item.type
        types = [event.type.removeprefix("response.") for event in own[1:-1]]
        assert list(dict.fromkeys(types)) == EVENTS[item.type]
        assert all(event.item_id == item.id for event in own[1:-1])
        deltas = "".join(event.delta for event in own if event.type.endswith(".delta"))
        if item.type == "function_call":
            assert own[0].item.arguments == "" and own[0].item.call_id == item.call_id
            assert deltas == own[-2].arguments == item.arguments
        else:
            assert own[0].item.content == [] and own[1].part.text == ""
            assert deltas == own[-3].text == own[-2].part.text == item.content[0].text
    assert not middle


async def assert_same_streamed(app: Any, **fields: Any) -> Any:
    """Ask both ways; returns the response that is not streamed."""
    whole = await app.openai.responses.create(**fields)
    events = [event async for event in await app.openai.responses.create(**fields, stream=True)]
    assert_well_formed(events)
    assert comparable(events[-1].response) == comparable(whole)
    async with app.openai.responses.stream(**fields) as stream:
        async for _ in stream:
            pass
        if whole.status == "completed":
            assert comparable(await stream.get_final_response()) == comparable(whole)
    return whole


async def test_calls(app: Any) -> None:
    app.engine.text = CALLS
    response = await assert_same_streamed(app, **FIELDS, tools=TOOLS)
    message, first, second = response.output
    assert (message.type, response.output_text) == ("message", "Let me see.")
    assert (first.type, first.name, first.arguments) == ("function_call", "f", '{"a": [1, "é"]}')
    assert (second.type, second.name, second.arguments) == ("function_call", "g", "{}")
    assert first.call_id != second.call_id and first.call_id.startswith("call_")
    assert response.status == first.status == "completed" and response.parallel_tool_calls
    response = await assert_same_streamed(app, **FIELDS, tools=TOOLS, parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["message", "function_call"]
    assert not response.parallel_tool_calls
    for fields in ({"tools": TOOLS, "tool_choice": "none"}, {}):
        assert (await assert_same_streamed(app, **FIELDS, **fields)).output_text == CALLS


async def test_reasoning(app: Any) -> None:
    app.engine.text = THOUGHT + CALLS
    response = await assert_same_streamed(app, **FIELDS, tools=TOOLS)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning = response.output[0]
    assert [part.text for part in reasoning.content] == ["Hm.\nOK."] and reasoning.summary == []
    # Those that were generated, what marks the end of the reasoning among them.
    least, most = (len(app.tokenizer.encode(text)) for text in ("Hm.\nOK.", THOUGHT))
    assert least <= response.usage.output_tokens_details.reasoning_tokens <= most
    app.engine.text = "Hm.</think>Yes."
    response = await assert_same_streamed(app, **FIELDS, reasoning={"effort": "high"}, top_logprobs=1)
    assert [item.type for item in response.output] == ["reasoning", "message"] and response.output_text == "Yes."
    assert response.reasoning.effort == "high"
    told = "".join(entry.token for entry in response.output[1].content[0].logprobs)
    assert told.endswith("Yes.<|im_end|>") and "Hm" not in told
    app.engine.text = "Yes."
    response = await assert_same_streamed(app, **FIELDS, reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]


async def test_cut_off(app: Any) -> None:
    app.engine.text = "Hm.</think>Yes."
    for most, types in ((2, ["reasoning"]), (13, ["reasoning", "message"])):
        fields = FIELDS | {"max_output_tokens": most, "reasoning": {"effort": "low"}}
        response = await assert_same_streamed(app, **fields)
        assert response.status == "incomplete" and [item.type for item in response.output] == types
        assert [item.status for item in response.output] == ["completed"] * (len(types) - 1) + ["incomplete"]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on(app: Any, stored: bool, stream: bool) -> None:
    app.engine.text = THOUGHT + CALLS
    response = await app.openai.responses.create(**FIELDS, tools=TOOLS, store=stored, stream=stream)
    if stream:
        response = [event async for event in response][-1].response
    results: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"of {item.name}"}
        for item in response.output
        if item.type == "function_call"
    ]
    app.engine.text = "ok"
    if stored:
        more = {"input": results, "previous_response_id": response.id}
    else:
        more = {"input": [{"role": "user", "content": "Hi"}, *response.output, *results], "store": False}
    await app.openai.responses.create(**FIELDS | more, max_output_tokens=9)
    assert app.prompt == (
        "user:|Hiassistant:Hm.\nOK.|Let me see."
        '<tool_call>{"name": "f", "arguments": {"a": [1, "é"]}}</tool_call><tool_call>{"name": "g", "arguments": {}}'
        "</tool_call>tool:|of ftool:|of g<|im_start|>"
    )


async def test_summaries_that_come_back(app: Any) -> None:
    app.engine.text = "ok"
    summary = [{"type": "summary_text", "text": "Hm."}]
    items: list[Any] = [
        {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "x"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
    ]
    await app.openai.responses.create(model="tiny", input=items, max_output_tokens=9)
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert app.prompt == f"assistant:Hm.|{call}tool:|1<|im_start|>"


async def test_tools_are_shown_and_counted(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson }}" + TEMPLATE}, {})
    app.engine.text = "ok"
    more: Any = {"tools": [TOOLS[0], {"type": "web_search"}]}
    response = await app.openai.responses.create(**FIELDS, **more, max_output_tokens=9)
    function = {name: value for name, value in TOOLS[0].items() if name != "type"}
    shown = [{"type": "function", "function": function}]
    assert app.prompt == f"{json.dumps(shown)}user:|Hi<|im_start|>"
    count = await app.openai.responses.input_tokens.count(**FIELDS, **more)
    assert count.input_tokens == response.usage.input_tokens and response.tools[1].type == "web_search"


async def test_demanded_calls(app: Any) -> None:
    app.engine.text = CALLS
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    for choice, several, names in (
        ("required", True, {"f", "g"}),
        ({"type": "function", "name": "g"}, False, {"g"}),
        (allowed, True, {"f"}),
    ):
        await app.openai.responses.create(**FIELDS, tools=TOOLS, tool_choice=choice)
        grammar = app.engine.params[-1].structured.value
        assert bool(re.search(r"call_\d+\)\*", grammar)) == several
        assert {name for name in "fg" if rf"{{\"name\": \"{name}\"" in grammar} == names


class Answer(BaseModel):
    yes: bool


async def test_structured_output(app: Any) -> None:
    app.engine.text = '{"yes": true}'
    response = await app.openai.responses.parse(**FIELDS, text_format=Answer)
    assert response.output_parsed == Answer(yes=True)
    assert json.loads(app.engine.params[-1].structured.value)["required"] == ["yes"]
    async with app.openai.responses.stream(**FIELDS, text_format=Answer) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Answer(yes=True) and final.text.format.name == "Answer"
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    await app.openai.responses.create(**FIELDS, text=form, reasoning={"effort": "low"})
    assert app.engine.params[-1].thought.inside


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": {"type": "function", "name": "h"}}, "'h', which is not among tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice must be"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice needs tools"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice must be"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools: is missing"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [1]}}, "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "allows no tool"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "h"}]}}, "allows 'h'"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function"}]}}, "must be str"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "no", "tools": []}}, "tool_choice.allowed_tools.mode"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "'f' is there already"),
        ({"tools": [{"type": "function", "parameters": {}}]}, "name: is missing"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id: is missing"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name: is missing"),
        ({"input": [{"type": "function_call_output", "output": "1"}]}, "input[0].call_id: is missing"),
    ],
)
async def test_wrong_requests(app: Any, fields: dict[str, Any], words: str) -> None:
    status, answer = await app.post("/v1/responses", FIELDS | {"tools": TOOLS} | fields)
    assert status == 400 and words in answer["error"]["message"], answer
