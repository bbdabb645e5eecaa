"""Calls that are broken off, odd, or made elsewhere, by all three APIs that know of calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate

OBJECT = {"type": "object", "properties": {}}
NAMES = ("write", "pay", "get_weather")
FUNCTIONS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": OBJECT}} for name in NAMES]
TOOLS: list[Any] = [{"type": "function", "name": name, "parameters": OBJECT} for name in NAMES]
USES: list[Any] = [{"name": name, "input_schema": OBJECT} for name in NAMES]
HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ':' + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' + ('<think>' if enable_thinking else '') }}{%- endif %}"""
BROKEN = (
    '<tool_call>{"name": "write", "arguments": {"path": "a.txt", "text": "this is quite a long text that goes on for '
    "more than sixty-four characters, or so it seems to me and never ends"
)


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.engine.context = app.engine.info.max_model_len = 1000
    use(app, TEMPLATE)
    return app


def use(app: Any, template: str) -> None:
    app.serving.chat_template = ChatTemplate({"default": template}, {})


class Answer:
    """What a client makes of an answer, whichever API it came by. cut: why it ended, and of calls the last one's state
    where that is told."""

    def __init__(self, reasoning: str, content: str, calls: list[tuple[str, str]], cut: str | None) -> None:
        self.reasoning, self.content, self.calls, self.cut = reasoning, content, calls, cut


async def by_chat(app: Any, client: Any, stream: bool, **fields: Any) -> Answer:
    body = {"model": "tiny", "messages": HELLO, "tools": FUNCTIONS} | fields
    if not stream:
        [choice] = (await app.openai.chat.completions.create(**body)).choices
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        reasoning = getattr(choice.message, "reasoning", None) or ""
        return Answer(reasoning, choice.message.content or "", calls, choice.finish_reason)
    reasoning, content, cut, deltas = "", "", None, []
    async for chunk in await app.openai.chat.completions.create(**body, stream=True):
        delta = chunk.choices[0].delta
        assert not (delta.content and deltas), "content behind a call"
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning", None) or ""
        deltas += [call.function for call in delta.tool_calls or []]
        cut = chunk.choices[0].finish_reason
    name = "".join(function.name or "" for function in deltas)
    arguments = "".join(function.arguments for function in deltas)
    return Answer(reasoning, content, [(name, arguments)] if deltas else [], cut)


async def by_responses(app: Any, client: Any, stream: bool, **fields: Any) -> Answer:
    body: dict[str, Any] = {"model": "tiny", "input": "Hi", "tools": TOOLS}
    body["extra_body"] = {name: value for name, value in fields.items() if name == "stop"}
    if "max_tokens" in fields:
        body["max_output_tokens"] = fields["max_tokens"]
    response = await app.openai.responses.create(**body, stream=stream)
    if stream:
        response = [event async for event in response][-1].response
    items = response.output
    calls = [item for item in items if item.type == "function_call"]
    assert not calls or items[-1] == calls[-1]
    reasoning = "".join(part.text for item in items if item.type == "reasoning" for part in item.content)
    cut = f"{response.status} {calls[-1].status}" if calls else response.status
    return Answer(reasoning, response.output_text, [(call.name, call.arguments) for call in calls], cut)


async def by_messages(app: Any, client: Any, stream: bool, **fields: Any) -> Answer:
    body = {"model": "tiny", "messages": HELLO, "tools": USES, "max_tokens": 500} | fields
    body["stop_sequences"] = body.pop("stop", [])
    async with app.http.post("/v1/messages", json=body | {"stream": stream}) as response:
        text = await response.text()
    if not stream:
        message = json.loads(text)
        blocks, ending = message["content"], message
        for block in blocks:
            block["text"] = block.get("text", "") or block.get("thinking", "")
            if block["type"] == "tool_use":
                block["text"] = text.partition('"input":')[2].partition("}],")[0]
                block["text"] = text[text.index('"input":') + 8 : text.index("}],")]
    else:
        blocks, ending = [], {}
        for event in (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")):
            if event["type"] == "content_block_start":
                blocks.append(event["content_block"] | {"text": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                blocks[-1]["text"] += delta.get("text", "") + delta.get("thinking", "") + delta.get("partial_json", "")
            elif event["type"] == "message_delta":
                ending = event["delta"]
    kinds = [block["type"] for block in blocks]
    assert kinds == sorted(kinds, key=["thinking", "text", "tool_use"].index)
    texts = {kind: "".join(block["text"] for block in blocks if block["type"] == kind) for kind in ("thinking", "text")}
    calls = [(block["name"], block["text"]) for block in blocks if block["type"] == "tool_use"]
    return Answer(texts["thinking"], texts["text"], calls, ending["stop_reason"])


APIS = {"chat": by_chat, "responses": by_responses, "messages": by_messages}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, {"chat": "stop", "responses": "completed incomplete", "messages": "end_turn"}),
        ({"stop": ["long"]}, {"chat": "stop", "responses": "completed incomplete", "messages": "stop_sequence"}),
        ({"max_tokens": 80}, {"chat": "length", "responses": "incomplete incomplete", "messages": "max_tokens"}),
    ],
)
async def test_calls_that_are_broken_off(
    app: Any, client: Any, api: str, stream: bool, fields: dict[str, Any], ends: dict[str, str]
) -> None:
    """vLLM#42210, vLLM PR#34101: nobody acts on half of the arguments, whatever ended them."""
    app.engine.text = BROKEN
    answer = await APIS[api](app, client, stream, **fields)
    assert answer.cut == ends[api]
    if api == "responses" or stream:  # it has been shown, and says of itself what it is
        [(name, arguments)] = answer.calls
        assert name == "write" and arguments in BROKEN and not answer.content
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(arguments)
    else:
        assert not answer.calls and answer.content and BROKEN.startswith(answer.content)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
async def test_a_stop_text_behind_a_call(app: Any, client: Any, api: str, stream: bool) -> None:
    """The arguments are complete: it is the tool's turn."""
    app.engine.text = '<tool_call>{"name": "write", "arguments": {"path": "a.txt"}}</tool_call>'
    answer = await APIS[api](app, client, stream, stop=["</tool_call>"])
    assert answer.calls == [("write", '{"path": "a.txt"}')] and not answer.content
    assert answer.cut == {"chat": "tool_calls", "responses": "completed completed", "messages": "tool_use"}[api]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
async def test_numbers_of_any_size(app: Any, client: Any, api: str, stream: bool) -> None:
    """RFC 8259, section 6: numbers have no range."""
    arguments = '{"amount": 123, "rate": 1e400, "small": 1.50}'
    app.engine.text = f'<tool_call>{{"name": "pay", "arguments": {arguments}}}</tool_call>'
    answer = await APIS[api](app, client, stream)
    assert (answer.calls, answer.content) == ([("pay", arguments)], "")
    assert answer.cut in ("tool_calls", "completed completed", "tool_use")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
async def test_calls_in_thoughts(app: Any, client: Any, api: str, stream: bool) -> None:
    """vLLM PR#35687, vLLM#39056, vLLM#33646: the call ends a thought that is never closed."""
    use(app, TEMPLATE + "{# <think> #}")
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bergen"}}\n</tool_call>\n'
    app.engine.text = f"<think>I call it now\n{call}"
    answer = await APIS[api](app, client, stream)
    assert (answer.reasoning, answer.content) == ("I call it now", "")
    assert answer.calls == [("get_weather", '{"city": "Bergen"}')]
    assert answer.cut in ("tool_calls", "completed completed", "tool_use")
    app.engine.text += "</think>\nNo."
    answer = await APIS[api](app, client, stream)
    assert (answer.reasoning, answer.content) == (f"I call it now\n{call}".strip(), "No.") and not answer.calls


IDENTITY = "call_0fypS1hVXabcdefgh"


async def post_history(app: Any, api: str, arguments: str, identity: str = IDENTITY) -> tuple[int, Any]:
    """A conversation with a call, whose arguments are this text, and its result."""
    app.engine.text = "ok"
    if api == "chat":
        call = {"id": identity, "type": "function", "function": {"name": "pay", "arguments": arguments}}
        turns = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        turns.append({"role": "tool", "tool_call_id": identity, "content": "done"})
        body: Any = {"messages": [*HELLO, *turns, *HELLO], "tools": FUNCTIONS}
        return await app.post("/v1/chat/completions", body)
    if api == "responses":
        items = [{"type": "function_call", "call_id": identity, "name": "pay", "arguments": arguments}]
        items.append({"type": "function_call_output", "call_id": identity, "output": "done"})
        return await app.post("/v1/responses", {"input": [*HELLO, *items, *HELLO], "tools": TOOLS})
    use_block = json.dumps({"type": "tool_use", "id": identity, "name": "pay", "input": None}).replace(
        "null", arguments
    )
    result = {"type": "tool_result", "tool_use_id": identity, "content": "done"}
    turn = json.dumps({"role": "user", "content": [result, {"type": "text", "text": "Hi"}]})
    turns_text = f'{json.dumps(HELLO[0])}, {{"role": "assistant", "content": [{use_block}]}}, {turn}'
    body = f'{{"max_tokens": 9, "tools": {json.dumps(USES)}, "messages": [{turns_text}]}}'.encode()
    return await app.post("/v1/messages", body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("api", APIS)
async def test_numbers_that_come_back(app: Any, api: str) -> None:
    """The prompt has what the model wrote, digit for digit."""
    arguments = '{"rate": 1e400, "small": 1.50, "digits": 0.1234567890123456789, "list": [-0, 1E5]}'
    status, answer = await post_history(app, api, arguments)
    assert status == 200, answer
    call = f'<tool_call>{{"name": "pay", "arguments": {arguments}}}</tool_call>'
    assert app.prompt == f"user:Hiassistant:{call}tool:doneuser:Hi<|im_start|>"


@pytest.mark.parametrize(
    "arguments", ['{"value": ', '{"a": "b', "", "[1]", '"text"', "no JSON", '{"a": %s}' % ("9" * 200)]
)
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_arguments_that_are_no_object(app: Any, api: str, arguments: str) -> None:
    """vLLM#43995: what a model once wrote does not block its conversation."""
    status, answer = await post_history(app, api, arguments)
    assert status == 200, answer
    shown: Any = arguments or {}
    assert f'"arguments": {json.dumps(shown)}}}</tool_call>' in app.prompt
    use(app, TEMPLATE.replace("(call.function | tojson)", "call.function.arguments"))
    status, answer = await post_history(app, api, arguments)
    assert status == 200 and f"<tool_call>{arguments or '{}'}</tool_call>" in app.prompt, answer
    loop = "(call.function.arguments.items() | list | string)"
    use(app, TEMPLATE.replace("(call.function | tojson)", loop))
    status, answer = await post_history(app, api, arguments)
    assert status == 200 and "<tool_call>[]</tool_call>" in app.prompt, answer


@pytest.mark.parametrize("given", ["[1]", '"text"', "null", "{}"])
async def test_inputs_that_are_no_object(app: Any, given: str) -> None:
    status, answer = await post_history(app, "messages", given)
    assert status == 200, answer
    shown = "{}" if given == "null" else json.dumps(given) if given != "{}" else given
    assert f'"arguments": {shown}}}</tool_call>' in app.prompt


STRICT = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('Tool call IDs have length 9!') }}{% endif %}
{{- '[TOOL_RESULTS]' + message.tool_call_id + ':' + message.content }}
{%- else %}{{ message.role + ':' + message.content }}
{%- for call in message.tool_calls %}
{%- if call.id is undefined or call.id | length != 9 %}{{ raise_exception('Tool call IDs have length 9!') }}{% endif %}
{{- '[TOOL_CALLS]' + call.id + (call.function.arguments | tojson) }}
{%- endfor %}{%- endif %}{%- endfor %}"""


@pytest.mark.parametrize("api", APIS)
async def test_ids_of_calls_made_elsewhere(app: Any, api: str) -> None:
    """langchain PR#24668 does this for each client; the templates of Mistral take nine characters only."""
    use(app, STRICT)
    status, answer = await post_history(app, api, "{}")
    assert status == 200, answer
    before, called, result = app.prompt.partition("{}")
    assert called and before[-9:].isalnum() and before[-9:] not in IDENTITY
    assert result.startswith(f"[TOOL_RESULTS]{before[-9:]}:done")
    first = before[-9:]
    status, answer = await post_history(app, api, "{}", IDENTITY + "2")
    other = app.prompt.partition("{}")[0][-9:]
    assert status == 200 and other != first
    status, answer = await post_history(app, api, "{}", "abcDEF123")
    assert status == 200 and "[TOOL_CALLS]abcDEF123{}[TOOL_RESULTS]abcDEF123:" in app.prompt, answer
    use(app, STRICT.replace("!= 9", "< 9"))
    status, answer = await post_history(app, api, "{}")
    assert status == 200 and f"[TOOL_CALLS]{IDENTITY}" in app.prompt, answer


COLOR = {
    "type": "object",
    "properties": {"color": {"type": "string"}},
    "required": ["color"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("demand", ["named", "required"])
@pytest.mark.parametrize("api", APIS)
async def test_a_form_beside_a_demand(app: Any, api: str, demand: str) -> None:
    """As instructor 1.17 sends it (Mode.RESPONSES_TOOLS): the form is one of text, of which there is none."""
    app.engine.text = '<tool_call>\n{"name": "Color", "arguments": {"color": "blue"}}\n</tool_call>'
    form = {"type": "json_schema", "name": "Color", "schema": COLOR}
    if api == "chat":
        named: Any = {"type": "function", "function": {"name": "Color"}}
        tools = [{"type": "function", "function": {"name": "Color", "parameters": COLOR}}]
        body: Any = {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": form}, "tools": tools}
        path = "/v1/chat/completions"
    elif api == "responses":
        named = {"type": "function", "name": "Color"}
        tools = [{"type": "function", "name": "Color", "parameters": COLOR}]
        body, path = {"input": "Hi", "text": {"format": form}, "tools": tools}, "/v1/responses"
    else:
        named, path = {"type": "tool", "name": "Color"}, "/v1/messages"
        body = {"messages": HELLO, "max_tokens": 90, "tools": [{"name": "Color", "input_schema": COLOR}]}
        body["output_config"] = {"format": {"type": "json_schema", "schema": COLOR}}
    every: Any = {"type": "any"} if api == "messages" else "required"
    status, answer = await app.post(path, body | {"tool_choice": named if demand == "named" else every})
    assert status == 200 and "blue" in json.dumps(answer), answer
    structured = app.engine.params[-1].structured
    assert structured.kind == "lark" and r"{\"name\": \"Color\"" in structured.value
