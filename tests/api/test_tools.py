"""Tool calls and reasoning over HTTP, as the official client sees them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from sophserve.sampling import Thought
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "g"}},
]
TEMPLATE = """\
{%- if tools and shown %}{{- '<tools>' + (tools | tojson) + '</tools>' }}{%- endif %}
{%- for message in messages %}
{{- message.role + ':' + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' + begin | default('') }}{%- endif %}"""
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
FIELDS: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": TOOLS}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


async def folded(app: Any, **fields: Any) -> list[Any]:
    """The choices of a stream, each with its deltas put together as clients do it."""
    choices: dict[int, Any] = {}
    async for chunk in await app.openai.chat.completions.create(**fields, stream=True):
        for part in chunk.choices:
            choice = choices.setdefault(part.index, {"message": {"content": ""}, "reason": None})
            message = choice["message"]
            choice["reason"] = part.finish_reason
            for name, value in part.delta.model_dump(exclude_unset=True, exclude={"tool_calls"}).items():
                message[name] = value if name == "role" else message.get(name, "") + value
            for call in part.delta.tool_calls or []:
                calls = message.setdefault("tool_calls", [])
                if call.index == len(calls):
                    assert call.id and call.type == "function" and call.function.name
                    calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
                else:
                    assert call.index == len(calls) - 1
                    assert call.id is None and call.type is None and call.function.name is None
                calls[-1]["arguments"] += call.function.arguments
    return [choices[index] for index in sorted(choices)]


async def assert_same_streamed(app: Any, **fields: Any) -> Any:
    """Ask both ways; returns the choice of the answer that is not streamed."""
    whole = (await app.openai.chat.completions.create(**fields)).choices[0]
    [streamed] = await folded(app, **fields)
    message = streamed["message"]
    assert streamed["reason"] == whole.finish_reason
    assert message["content"] == (whole.message.content or "")
    extra = whole.message.model_dump(exclude_unset=True)
    assert message.get("reasoning") == extra.get("reasoning") == extra.get("reasoning_content")
    calls = [(call["name"], call["arguments"]) for call in message.get("tool_calls", [])]
    assert calls == [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or []]
    ids = [call.id for call in whole.message.tool_calls or []] + [call["id"] for call in message.get("tool_calls", [])]
    assert len(set(ids)) == len(ids)
    return whole


async def test_calls(app: Any) -> None:
    app.engine.text = CALLS
    choice = await assert_same_streamed(app, **FIELDS)
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    first, second = choice.message.tool_calls
    assert (first.type, first.function.name, json.loads(first.function.arguments)) == ("function", "f", {"a": "é"})
    assert (second.function.name, second.function.arguments) == ("g", "{}")
    assert re.fullmatch(r"call_[0-9a-f]{32}", first.id)
    choice = await assert_same_streamed(app, **FIELDS, parallel_tool_calls=False)
    assert [call.function.name for call in choice.message.tool_calls] == ["f"]
    app.engine.text = CALLS.removeprefix("Let me see.")
    choice = await assert_same_streamed(app, **FIELDS)
    assert choice.message.content is None and len(choice.message.tool_calls) == 2


async def test_the_shape_of_a_stream(app: Any) -> None:
    app.engine.text = CALLS
    stream = await app.openai.chat.completions.create(**FIELDS, stream=True)
    deltas = [c.choices[0].delta.model_dump(exclude_unset=True) async for c in stream]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 1]
    assert calls[0] == {
        "index": 0,
        "id": calls[0]["id"],
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert calls[1] == {"index": 0, "function": {"arguments": '{"a": "é"'}}
    assert calls[2] == {"index": 0, "function": {"arguments": "}"}}
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}


async def test_text_without_calls(app: Any) -> None:
    for text in ("Plain <text>. ", '<tool_call>{"name": "f", "arguments": {oops}}</tool_call>', ""):
        app.engine.text = text
        choice = await assert_same_streamed(app, **FIELDS)
        assert choice.finish_reason == "stop" and choice.message.content == text and not choice.message.tool_calls
    app.engine.text = CALLS
    for fields in ({"tool_choice": "none"}, {"tools": []}):
        choice = await assert_same_streamed(app, **{**FIELDS, **fields})
        assert choice.message.content == CALLS and choice.finish_reason == "stop"


async def test_an_answer_that_is_cut_off(app: Any) -> None:
    app.engine.text = CALLS
    length = len(app.tokenizer.encode(CALLS))
    choice = await assert_same_streamed(app, **FIELDS, max_tokens=length - 5)
    assert choice.finish_reason == "length" and len(choice.message.tool_calls) == 2
    choice = await assert_same_streamed(app, **FIELDS, max_tokens=length // 4)
    assert choice.finish_reason == "length" and CALLS.startswith(choice.message.content)
    assert not choice.message.tool_calls


async def test_several_answers_and_logprobs(app: Any) -> None:
    app.engine.text = CALLS
    answer = await app.openai.chat.completions.create(**FIELDS, n=2, logprobs=True)
    tokens = len(app.tokenizer.encode(CALLS)) + 1
    assert all(len(choice.message.tool_calls) == 2 for choice in answer.choices)
    assert all(len(choice.logprobs.content) == tokens for choice in answer.choices)
    assert answer.usage.completion_tokens == 2 * tokens
    seen = [0, 0]
    async for chunk in await app.openai.chat.completions.create(**FIELDS, n=2, logprobs=True, stream=True):
        for choice in chunk.choices:
            seen[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert seen == [tokens, tokens]


async def test_tools_and_results_are_rendered(app: Any) -> None:
    app.engine.text = "ok"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    shown = {"chat_template_kwargs": {"shown": True}}
    await app.openai.chat.completions.create(**{**FIELDS, "messages": messages}, extra_body=shown)
    prompt = app.tokenizer.decode(app.engine.prompts[-1], skip_special_tokens=False)
    assert prompt == (
        f"<tools>{json.dumps(TOOLS)}</tools>user:Hiassistant:"
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>tool:2<|im_start|>'
    )


async def test_markers_that_are_special_tokens(app: Any) -> None:
    backend = Backend.from_file(str(app.engine.directory / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("[TOOL_CALLS]", "[ARGS]", "[OTHER]")])
    tokenizer = app.serving.tokenizer = app.engine._tokenizer = Tokenizer(backend, {}, {})
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE + "{# [TOOL_CALLS] #}"}, {})
    app.engine.text = 'Hm[OTHER].[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'
    choice = await assert_same_streamed(app, **FIELDS)
    assert choice.message.content == "Hm."
    assert [call.function.name for call in choice.message.tool_calls] == ["f", "g"]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", call.id) for call in choice.message.tool_calls)
    assert app.engine.params[-1].shown_token_ids == [
        tokenizer.special_id("[TOOL_CALLS]"),
        tokenizer.special_id("[ARGS]"),
    ]
    choice = await assert_same_streamed(app, model="tiny", messages=HELLO)
    assert choice.message.content == 'Hm.f{"a": 1}g{}'


async def test_the_server_chooses_the_parser(start_app: Any) -> None:
    app = await start_app(tool_call_parser="llama3_json")
    app.engine.text = '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'
    choice = await assert_same_streamed(app, **FIELDS)
    assert [call.function.name for call in choice.message.tool_calls] == ["f", "g"]
    app = await start_app(tool_call_parser="none")
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    assert (await app.post("/v1/chat/completions", FIELDS))[0] == 400


THINKING = TEMPLATE + "{# <think> #}"


async def test_reasoning(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": THINKING}, {})
    fields = {"model": "tiny", "messages": HELLO}
    inside = {"extra_body": {"chat_template_kwargs": {"begin": "<think>\n"}}}
    app.engine.text = "Hm.\n</think>\n\nYes."
    choice = await assert_same_streamed(app, **fields, **inside)
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Yes.")
    choice = await assert_same_streamed(app, **fields)
    assert not hasattr(choice.message, "reasoning") and choice.message.content == app.engine.text
    app.engine.text = "<think>\nHm.\n</think>\n\nYes."
    choice = await assert_same_streamed(app, **fields)
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Yes.")
    closed = {"chat_template_kwargs": {"begin": "<think>\n\n</think>\n\n"}}
    choice = await assert_same_streamed(app, **fields, extra_body=closed)
    assert choice.message.content == app.engine.text
    app.engine.text = "Hm."
    choice = await assert_same_streamed(app, **fields, **inside)
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", None)


async def test_reasoning_before_calls(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": THINKING}, {})
    app.engine.text = "<think>\nHm.\n</think>\n\n" + CALLS
    choice = await assert_same_streamed(app, **FIELDS)
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Let me see.")
    assert len(choice.message.tool_calls) == 2 and choice.finish_reason == "tool_calls"
    choice = await assert_same_streamed(app, **FIELDS, extra_body={"include_reasoning": False})
    assert not hasattr(choice.message, "reasoning") and choice.message.content == "Let me see."


async def test_the_server_chooses_how_reasoning_is_found(start_app: Any) -> None:
    for name, reasoning in (("deepseek_r1", "Hm."), ("qwen3", None), ("none", None)):
        app = await start_app(reasoning_parser=name)
        app.engine.text = "Hm.</think>Yes."
        choice = await assert_same_streamed(app, model="tiny", messages=HELLO)
        assert getattr(choice.message, "reasoning", None) == reasoning


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_that_comes_back(app: Any, name: str) -> None:
    source = "{% for m in messages %}{{ m.reasoning_content or '' }}|{{ m.content }}{% endfor %}"
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    app.engine.text = "ok"
    messages = [*HELLO, {"role": "assistant", "content": "Yes", name: "Hm"}, *HELLO]
    assert (await app.post("/v1/chat/completions", {"messages": messages}))[0] == 200
    assert app.tokenizer.decode(app.engine.prompts[-1]) == "|HiHm|Yes|Hi"


async def test_demanded_calls(app: Any) -> None:
    app.engine.text = CALLS
    named = {"type": "function", "function": {"name": "g"}}
    await assert_same_streamed(app, **FIELDS, tool_choice="required")
    several = app.engine.params[-1].structured
    await assert_same_streamed(app, **FIELDS, tool_choice="required", parallel_tool_calls=False)
    one = app.engine.params[-1].structured
    await assert_same_streamed(app, **FIELDS, tool_choice=named)
    only = app.engine.params[-1].structured
    assert [grammar.kind for grammar in (several, one, only)] == ["lark"] * 3
    assert [bool(re.search(r"call_\d+\)\*", grammar.value)) for grammar in (several, one, only)] == [True, False, False]
    assert r"{\"name\": \"f\"" in one.value and r"{\"name\": \"f\"" not in only.value
    await assert_same_streamed(app, **FIELDS)
    assert app.engine.params[-1].structured is None


async def test_constraints_begin_behind_the_reasoning(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": THINKING}, {})
    app.engine.text = "ok"
    schema = {"response_format": {"type": "json_object"}}
    inside, free = Thought("<think>", "</think>", inside=True), Thought("<think>", "</think>")
    for begin, fields, thought in (
        ("<think>\n", {"tool_choice": "required"}, inside),
        ("<think>\n", schema, inside),
        ("", {"tool_choice": "required"}, free),
        ("", schema, free),
        ("", schema | {"tools": []}, free),
        ("", schema | {"reasoning_effort": "high"}, free),
        ("", schema | {"reasoning_effort": "none"}, None),
        ("<think>\n\n</think>\n\n", {"tool_choice": "required"}, None),
    ):
        body = FIELDS | {"chat_template_kwargs": {"begin": begin}} | fields
        assert (await app.post("/v1/chat/completions", body))[0] == 200
        params = app.engine.params[-1]
        assert params.structured and params.thought == thought


async def test_demands_that_cannot_be_met(app: Any, start_app: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}]
    for fields, param, words in (
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice", "'h', which is not among"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "must be none"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "needs tools"),
        ({"tool_choice": "required", "tools": tools}, "tools", "not of f/properties/a cannot"),
    ):
        status, answer = await app.post("/v1/chat/completions", FIELDS | fields)
        assert status == 400 and answer["error"]["param"] == param and words in answer["error"]["message"], answer
    app = await start_app(tool_call_parser="pythonic")
    tools[0]["function"]["parameters"] = {"type": "object", "properties": {"my-key": {}}}
    status, answer = await app.post("/v1/chat/completions", FIELDS | {"tools": tools, "tool_choice": "required"})
    assert status == 400 and answer["error"]["param"] == "tools" and "'my-key'" in answer["error"]["message"]


def limited_to(*names: str, mode: str = "auto") -> dict[str, Any]:
    allowed = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}


async def test_tools_that_are_strict_or_allowed(app: Any) -> None:
    app.engine.text = CALLS
    strict = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS]
    for fields, begins, names in (
        ({"tools": strict}, "start: (calls", "fg"),
        ({"tools": strict, "parallel_tool_calls": False}, "start: (calls_", "fg"),
        ({"tool_choice": limited_to("g")}, "start: (calls", "g"),
        ({"tool_choice": limited_to("g", mode="required")}, "start: /[ ", "g"),
        ({"tool_choice": limited_to("f", "g"), "response_format": {"type": "json_object"}}, "start: /[ ", "fg"),
        ({"response_format": {"type": "json_object"}}, "start: /[ ", "fg"),
    ):
        assert len((await assert_same_streamed(app, **FIELDS | fields)).message.tool_calls) >= 1
        structured = app.engine.params[-1].structured
        assert structured.kind == "lark" and structured.value.startswith(begins)
        assert "".join(name for name in "fgh" if rf"{{\"name\": \"{name}\"" in structured.value) == names
    for fields in ({"tool_choice": "none"}, {"tools": []}):
        body = {**FIELDS, **fields, "response_format": {"type": "json_object"}}
        await assert_same_streamed(app, **body)
        assert app.engine.params[-1].structured.kind == "json_object"


async def test_tools_that_cannot_be_limited(app: Any, start_app: Any) -> None:
    for choice, words in (
        (limited_to("h"), "allows 'h', which is not among tools"),
        (limited_to(), "allows no tool"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools: is missing"),
        (limited_to("f", mode="maybe"), "tool_choice.allowed_tools.mode"),
    ):
        status, answer = await app.post("/v1/chat/completions", FIELDS | {"tool_choice": choice})
        assert status == 400 and words in answer["error"]["message"], answer
    app = await start_app(tool_call_parser="pythonic")
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"my-key": {}}}}
    for fields in ({}, {"tool_choice": limited_to("f")}, {"response_format": {"type": "json_object"}}):
        body = FIELDS | {"tools": [{"type": "function", "function": function}]} | fields
        status, answer = await app.post("/v1/chat/completions", body)
        assert status == 400 and "'my-key' is no name in Python" in answer["error"]["message"], answer


async def test_reasoning_effort(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ reasoning_effort }} {{ enable_thinking }}"}, {})
    app.engine.text = "ok"
    for effort, prompt in (("low", "low True"), ("none", "none False"), (None, " ")):
        await app.post("/v1/chat/completions", {"messages": HELLO, "reasoning_effort": effort})
        assert app.tokenizer.decode(app.engine.prompts[-1]) == prompt


async def test_the_server_tells_its_parsers(app: Any, start_app: Any) -> None:
    async def told(app: Any) -> Any:
        async with app.http.get("/server_info") as response:
            return (await response.json())["parsers"]

    assert await told(app) == {"tool_calls": "hermes", "reasoning": None}
    app = await start_app(tool_call_parser="none", reasoning_parser="mistral")
    assert await told(app) == {"tool_calls": None, "reasoning": "mistral"}


async def test_schemas_that_are_none(app: Any) -> None:
    deep = '{"not":' * 5000 + "{}" + "}" * 5000
    for schema in ("[1]", "{", deep):
        status, answer = await app.post("/v1/chat/completions", FIELDS | {"guided_json": schema})
        assert status == 400 and answer["error"]["type"] == "invalid_request_error", answer
