"""What is thought and what is said, over every API that tells them apart, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

TEMPLATE = """\
{%- for message in messages %}{{ message.role + ':' + message.content + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- elif opened %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
OPENED = {"chat_template_kwargs": {"opened": True}}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


@dataclass
class Said:
    """reason: why it ended, in the API's own words. thought: tokens that it says were spent on reasoning."""

    reasoning: str
    content: str
    reason: str
    thought: int
    tokens: int


def of_chat(answer: Any) -> Said:
    [choice] = answer["choices"]
    message, usage = choice["message"], answer["usage"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    content = message["content"] or ""
    return Said(message.get("reasoning", ""), content, choice["finish_reason"], thought, usage["completion_tokens"])


def of_message(answer: Any) -> Said:
    texts = {"thinking": "", "text": ""}
    for block in answer["content"]:
        texts[block["type"]] += block[block["type"]]
    usage = answer["usage"]
    thought = usage["output_tokens_details"]["thinking_tokens"]
    return Said(texts["thinking"], texts["text"], answer["stop_reason"], thought, usage["output_tokens"])


def of_response(answer: Any) -> Said:
    texts = {"reasoning": "", "message": ""}
    for item in answer["output"]:
        texts[item["type"]] += "".join(part["text"] for part in item["content"])
    usage = answer["usage"]
    thought = usage["output_tokens_details"]["reasoning_tokens"]
    return Said(texts["reasoning"], texts["message"], answer["status"], thought, usage["output_tokens"])


def folded_chat(events: list[Any]) -> Any:
    message: dict[str, str] = {"content": ""}
    reason = None
    for event in events:
        for choice in event["choices"]:
            for name in ("content", "reasoning"):
                message[name] = message.get(name, "") + choice["delta"].get(name, "")
            reason = choice["finish_reason"]
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": events[-1]["usage"]}


def folded_message(events: list[Any]) -> Any:
    blocks: list[dict[str, str]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta" and event["delta"]["type"] != "signature_delta":
            kind = event["delta"]["type"].removesuffix("_delta")
            blocks[-1][kind] += event["delta"][kind]
    [end] = [event for event in events if event["type"] == "message_delta"]
    return {"content": blocks, "stop_reason": end["delta"]["stop_reason"], "usage": end["usage"]}


def form(schema: Any) -> dict[str, Any]:
    """What asks for it, by API."""
    named = {"type": "json_schema", "name": "x", "schema": schema}
    return {
        "chat": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        "messages": {"output_config": {"format": named}},
        "responses": {"text": {"format": named}},
    }


HELLO = [{"role": "user", "content": "Hi"}]
APIS: dict[str, tuple[str, dict[str, Any], Callable[[Any], Said], Callable[[list[Any]], Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": HELLO, "stream_options": {"include_usage": True}},
        of_chat,
        folded_chat,
    ),
    "messages": ("/v1/messages", {"messages": HELLO, "max_tokens": 1000}, of_message, folded_message),
    "responses": ("/v1/responses", {"input": "Hi"}, of_response, lambda events: events[-1]["response"]),
}


async def said(app: Any, api: str, fields: dict[str, Any]) -> Said:
    """What an API gives, the same whole and streamed."""
    path, common, read, folded = APIS[api]
    body = common | fields
    async with app.http.post(path, json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    streamed = read(folded([json.loads(line) for line in data if line != "[DONE]"]))
    body.pop("stream_options", None)
    status, answer = await app.post(path, body)
    assert status == 200, answer
    assert read(answer) == streamed
    return streamed


def count(app: Any, text: str) -> int:
    return len(app.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("api", APIS)
async def test_a_form_leaves_the_model_its_thought(app: Any, api: str) -> None:
    """vLLM#47027: the form applies behind the reasoning, of models that begin it by themselves as well."""
    app.engine.obeys = True
    app.engine.text = '<think>\nLet me see.</think>\n\n{"a": 1}'
    efforts: dict[str, list[dict[str, Any]]] = {
        "chat": [{}, {"reasoning_effort": "high"}],
        "messages": [{}, {"thinking": {"type": "adaptive"}}],
        "responses": [{}, {"reasoning": {"effort": "high"}}],
    }
    for effort in efforts[api]:
        got = await said(app, api, form(SCHEMA)[api] | effort)
        assert (got.reasoning, got.content) == ("Let me see.", '{"a": 1}')
    app.engine.text = '{"a": 1}'
    got = await said(app, api, form(SCHEMA)[api])
    assert (got.reasoning, got.content, got.thought) == ("", '{"a": 1}', 0)


@pytest.mark.parametrize("api", APIS)
async def test_a_form_begins_at_once_where_thinking_is_off(app: Any, api: str) -> None:
    app.engine.obeys = True
    app.engine.text = '<think>\nLet me see.</think>\n\n{"a": 1}'
    off: dict[str, dict[str, Any]] = {
        "chat": {"chat_template_kwargs": {"enable_thinking": False}},
        "messages": {"thinking": {"type": "disabled"}},
        "responses": {"reasoning": {"effort": "none"}},
    }
    for template in (TEMPLATE, "{{ messages[0].content }}{# <think> #}"):  # the second one cannot turn it off
        app.serving.chat_template = ChatTemplate({"default": template}, {})
        got = await said(app, api, form(SCHEMA)[api] | off[api])
        assert got.reasoning == "" and json.loads(got.content).keys() == {"a"}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_regex": r'\{"a": \d\}'},
        {"structured_outputs": {"choice": ['{"a": 1}', "no"]}},
        {"structured_outputs": {"grammar": 'start: "{" /[^}]*/ "}"'}},
    ],
)
@pytest.mark.parametrize("start", [{}, OPENED])
async def test_every_form_holds_behind_the_thought(app: Any, fields: dict[str, Any], start: dict[str, Any]) -> None:
    app.engine.obeys = True
    app.engine.text = '<think>\nLet me see {"b": 2}.</think>\n\n{"a": 1}'.removeprefix("<think>" if start else "")
    got = await said(app, "chat", fields | start)
    assert (got.reasoning, got.content) == ('Let me see {"b": 2}.', '{"a": 1}')


@pytest.mark.parametrize("api", APIS)
async def test_a_form_that_begins_within_the_token_that_ends_the_thought(app: Any, api: str) -> None:
    """vLLM#48228, vLLM#43338: the beginning is not said twice."""
    backend = Backend.from_file(str(app.engine.directory / "tokenizer.json"))
    backend.add_tokens([AddedToken('>\n\n{"', normalized=False)])
    app.serving.tokenizer = app.engine._tokenizer = Tokenizer(backend, {}, {})
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE.replace("opened", "true")}, {})
    app.engine.obeys = True
    app.engine.text = 'Thinking {"x": 9} hard about JSON</think>\n\n{"c": 3, "d": "x"}'
    properties = {"c": {"type": "integer"}, "d": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": ["c", "d"], "additionalProperties": False}
    got = await said(app, api, form(schema)[api])
    assert (got.reasoning, got.content) == ('Thinking {"x": 9} hard about JSON', '{"c": 3, "d": "x"}')


STOPS = {"chat": "stop", "messages": "stop_sequences", "responses": "stop"}
ENDS = {"chat": "stop", "messages": "stop_sequence", "responses": "completed"}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("opened", [True, False])
async def test_texts_that_end_the_answer_do_not_end_the_thought(app: Any, api: str, opened: bool) -> None:
    """vLLM PR#14550, vLLM#52393, lm-evaluation-harness PR#3700."""
    if opened:
        template = TEMPLATE.replace("opened", "true")
        app.serving.chat_template = ChatTemplate({"default": template}, {})
    app.engine.text = "<think>\n" * (not opened) + "Plan:\n\nSTOP sign</think>\n\nAnswer: STOP end"
    # The blanks behind the thought are no content either.
    for stop, content in ((["STOP"], "Answer: "), (["\n\n", "STOP"], "Answer: "), (["<think>", "wer"], "Ans")):
        got = await said(app, api, {STOPS[api]: stop})
        assert (got.reasoning, got.content, got.reason) == ("Plan:\n\nSTOP sign", content, ENDS[api])
    app.engine.text = "Yes. <thi STOP"
    if not opened:
        got = await said(app, api, {STOPS[api]: ["<thi"]})
        assert (got.reasoning, got.content, got.reason) == ("", "Yes. ", ENDS[api])


async def test_where_nothing_is_told_apart_texts_end_the_answer_anywhere(app: Any, start_app: Any) -> None:
    app.engine.text = "<think>\nPlan: STOP</think>\n\nAnswer"
    status, answer = await app.post("/v1/completions", {"prompt": "Hi", "stop": "STOP", "max_tokens": 100})
    assert status == 200 and answer["choices"][0]["text"] == "<think>\nPlan: "
    app = await start_app(reasoning_parser="none")
    app.engine.text = "<think>\nPlan: STOP</think>\n\nAnswer"
    got = await said(app, "chat", {"stop": "STOP"})
    assert got.content == "<think>\nPlan: " and got.reason == "stop"


@pytest.mark.parametrize("api", APIS)
async def test_tokens_of_the_thought_are_counted(app: Any, api: str) -> None:
    """vLLM#50895; Anthropic's schema counts the marks as well."""
    thought = "<think>\nPlan: é🙂</think>"
    for text, thinking in (
        (thought + "\n\nAnswer", thought),
        (thought.removesuffix("</think>"), thought.removesuffix("</think>")),
        ("Answer <think>", ""),
        ("<thi", ""),
    ):
        app.engine.text = text
        got = await said(app, api, {})
        end = 1 if thinking == text else 0  # the token that ends an answer in the middle of its thought
        assert got.thought == count(app, thinking) + end <= got.tokens
    app.engine.text = "Hm.</think>Yes."
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE.replace("opened", "true")}, {})
    got = await said(app, api, {})
    assert (got.reasoning, got.content) == ("Hm.", "Yes.") and 0 < got.thought < got.tokens


async def test_tokens_of_several_thoughts(app: Any) -> None:
    app.engine.text = "<think>\nPlan</think>Answer"
    one = await app.post("/v1/chat/completions", {"messages": HELLO})
    two = await app.post("/v1/chat/completions", {"messages": HELLO, "n": 2, "logprobs": True})
    [single, double] = (answer["usage"]["completion_tokens_details"]["reasoning_tokens"] for _, answer in (one, two))
    assert double == 2 * single > 0


PREFILLS = [
    # What the assistant is made to have said, what it goes on with, reasoning, content.
    ("<think>\nOkay", " and so on I add</think>\n\nThe total is 7.", " and so on I add", "The total is 7."),
    ("<think>\n", "\nOkay</think>\n\nYes.", "Okay", "Yes."),
    ("<think>a</think>\n\nThe", " total is </think> 7.", "", " total is </think> 7."),
    ("The <think>", " tag", "", " tag"),
    ("The", " total is 7.", "", " total is 7."),
]


@pytest.mark.parametrize(("prefill", "text", "reasoning", "content"), PREFILLS)
async def test_an_answer_goes_on_where_the_prompt_left_it(
    app: Any, prefill: str, text: str, reasoning: str, content: str
) -> None:
    """vLLM PR#38749 discusses the contrary."""
    app.engine.text = text
    messages = [*HELLO, {"role": "assistant", "content": prefill}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    got = await said(app, "chat", fields)
    assert (got.reasoning, got.content) == (reasoning, content)
    got = await said(app, "messages", {"messages": messages})
    assert (got.reasoning, got.content) == (reasoning, content)
    parts = [{"type": "text", "text": prefill}]
    got = await said(app, "messages", {"messages": [*HELLO, {"role": "assistant", "content": parts}]})
    assert (got.reasoning, got.content) == (reasoning, content)


async def test_an_answer_goes_on_with_what_turns_in_a_row_have_begun(app: Any) -> None:
    once = "{% for m in messages %}{% if m.role == messages[loop.index0 - 1].role and not loop.first %}"
    source = once + "{{ raise_exception('twice') }}{% endif %}{{ m.role + m.content }}{% endfor %}{# <think> #}"
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    app.engine.text = " and more</think>Yes."
    said_before = [{"role": "assistant", "content": text} for text in ("<think>\nOkay", "so")]
    got = await said(app, "messages", {"messages": [*HELLO, *said_before]})
    assert (got.reasoning, got.content) == (" and more", "Yes.")


async def test_forms_and_stops_of_an_answer_that_goes_on_with_a_thought(app: Any) -> None:
    app.engine.obeys = True
    app.engine.text = ' STOP I add</think>\n\n{"a": 7}'
    fields = {
        "messages": [*HELLO, {"role": "assistant", "content": "<think>\nOkay"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "stop": ["STOP"],
    }
    got = await said(app, "chat", fields | form(SCHEMA)["chat"])
    assert (got.reasoning, got.content) == (" STOP I add", '{"a": 7}')
