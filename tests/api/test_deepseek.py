"""Tools and reasoning of DeepSeek's models: what their chat templates say, and what they leave out. The templates here
have the marks, the variables and the gaps of the published ones, and are written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate
from tests.api.test_tools import HELLO, assert_same_streamed
from tests.text.test_tool_parsers import chosen_by

BEGIN, CALL, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
CALL_END, END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"

# Several messages of the system are put together before all others, in every one of them.
SYSTEM = "{% for m in messages if m.role == 'system' %}{{ '\n\n' if not loop.first }}{{ m.content }}{% endfor %}"
TURNS = """
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content + USER_END }}{% endif %}
{%- if m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% endif %}
{%- if m.role == 'assistant' %}{{ CONTENT }}
{%- for c in m.tool_calls or [] %}{{ ('<｜tool▁calls▁begin｜>' if loop.first) }}CALL{% endfor %}
{{- '<｜tool▁calls▁end｜>' if m.tool_calls }}{{ '<｜end▁of▁sentence｜>' }}{% endif %}
{%- endfor %}"""
FENCED = (
    "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + c.function.arguments + "
    "'\n```<｜tool▁call▁end｜>' }}"
)
PLAIN = (
    "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' }}"
)


def written(call: str, user_end: str, content: str, prompt: str) -> str:
    return SYSTEM + TURNS.replace("CALL", call).replace("USER_END", user_end).replace("CONTENT", content) + prompt


ENDS = "m.content.split('</think>') | last"
TEMPLATES = {
    "V3": written(FENCED, "'<｜Assistant｜>'", "m.content", ""),
    "R1": written(FENCED, "''", ENDS, "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"),
    "R1-0528": written(FENCED, "'<｜Assistant｜>'", ENDS, ""),
    "V3.1": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + written(
        PLAIN,
        "''",
        ENDS,
        "{% if add_generation_prompt and messages[-1].role == 'user' %}{{ '<｜Assistant｜>' }}"
        "{{ '<think>' if thinking else '</think>' }}{% endif %}",
    ),
}
FENCED_CALL = f'{BEGIN}{CALL}function{SEP}f\n```json\n{{"a": 1}}\n```{CALL_END}{END}'
PLAIN_CALL = f'{BEGIN}{CALL}f{SEP}{{"a": 1}}{CALL_END}{END}'

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "Does it.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    },
    {"type": "function", "function": {"name": "g"}},
]
FIELDS: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": TOOLS}


async def served(start_app: Any, name: str) -> Any:
    app = await start_app()
    app.engine.context = app.engine.info.max_model_len = 2000
    app.serving.chat_template = ChatTemplate({"default": TEMPLATES[name]}, {})
    return app


@pytest.mark.parametrize(
    ("name", "reasoning"), [("V3", None), ("R1", "qwen3"), ("R1-0528", "qwen3"), ("V3.1", "qwen3")]
)
def test_templates_choose_their_parsers(name: str, reasoning: str | None) -> None:
    """R1's reasoning is what `qwen3` reads, too: the prompt opens it, or the model does."""
    assert chosen_by(TEMPLATES[name]) == ("deepseek_v3", reasoning)


@pytest.mark.parametrize(
    ("name", "prompted", "answer", "reasoning"),
    [
        ("V3", "<｜Assistant｜>", "Yes. " + FENCED_CALL, None),
        ("R1", "<｜Assistant｜><think>\n", "Hm.\n</think>\n\nYes. " + FENCED_CALL, "Hm."),
        ("R1-0528", "<｜Assistant｜>", "<think>\nHm.\n</think>\nYes. " + FENCED_CALL, "Hm."),
        ("V3.1", "<｜Assistant｜></think>", "Yes. " + PLAIN_CALL, None),
    ],
)
async def test_answers_are_read(start_app: Any, name: str, prompted: str, answer: str, reasoning: str | None) -> None:
    app = await served(start_app, name)
    app.engine.text = answer
    choice = await assert_same_streamed(app, **FIELDS)
    [call] = choice.message.tool_calls
    assert app.prompt.endswith("<｜User｜>Hi" + prompted)
    assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": 1})
    assert getattr(choice.message, "reasoning", None) == reasoning
    assert (choice.message.content, choice.finish_reason) == ("Yes.", "tool_calls")


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}},
    ],
)
async def test_v31_thinks_where_it_is_asked_to(start_app: Any, fields: dict[str, Any]) -> None:
    """Its template calls `thinking` what most call `enable_thinking`."""
    app = await served(start_app, "V3.1")
    app.engine.text = "Hm.</think>Yes."
    choice = await assert_same_streamed(app, model="tiny", messages=HELLO, extra_body=fields)
    assert app.prompt.endswith("<｜Assistant｜><think>")
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Yes.")


async def test_v31_does_not_think_where_it_is_told_not_to(start_app: Any) -> None:
    app = await served(start_app, "V3.1")
    for fields in ({}, {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        await app.post("/v1/chat/completions", {"messages": HELLO, **fields})
        assert app.prompt.endswith("<｜Assistant｜></think>")
    body = {"model": "tiny", "max_tokens": 9, "messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert (await app.post("/v1/messages", body))[0] == 200
    assert app.prompt.endswith("<｜Assistant｜><think>")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("V3.1", f"tool_call_name{SEP}tool_call_arguments"),
        ("V3", f"function{SEP}tool_call_name\n```json\ntool_call_arguments\n```"),
        ("R1", f"function{SEP}tool_call_name\n```json\ntool_call_arguments\n```"),
    ],
)
async def test_tools_are_introduced_where_the_template_does_not_show_them(start_app: Any, name: str, form: str) -> None:
    """The published templates leave them out, and V3.1's model card tells applications to write them into the system
    message."""
    app = await served(start_app, name)
    introduction = (
        "## Tools\nYou have access to the following tools:\n\n"
        "### f\nDescription: Does it.\n\n"
        'Parameters: {"type": "object", "properties": {"a": {"type": "integer"}}}\n\n'
        "### g\n\nParameters: {}\n\n"
        f"IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{BEGIN}{CALL}{form}{CALL_END}{{additional_tool_calls}}{END}\n\nWhere:\n\n"
    )
    system = {"role": "system", "content": "Be good."}
    for messages, before in ((HELLO, ""), ([system, *HELLO], "Be good.\n\n")):
        async with app.http.post("/v1/chat/completions", json={"messages": messages, "tools": TOOLS}) as response:
            assert "X-Sophserve-Warnings" not in response.headers
        assert app.prompt.startswith(before + introduction), app.prompt
        assert app.prompt.count("## Tools") == 1
    await app.post("/v1/chat/completions", FIELDS | {"tool_choice": "none"})
    assert app.prompt.startswith("<｜User｜>Hi")


async def test_results_of_tools_come_behind_their_calls(start_app: Any) -> None:
    app = await served(start_app, "V3.1")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    assert (await app.post("/v1/chat/completions", FIELDS | {"messages": messages}))[0] == 200
    assert app.prompt.endswith(f"{PLAIN_CALL}<｜end▁of▁sentence｜><｜tool▁output▁begin｜>7<｜tool▁output▁end｜>")


async def test_demanded_calls_are_in_the_form_of_the_template(start_app: Any) -> None:
    for name, fenced in (("V3", True), ("V3.1", False)):
        app = await served(start_app, name)
        app.engine.text = FENCED_CALL if fenced else PLAIN_CALL
        await assert_same_streamed(app, **FIELDS, tool_choice="required")
        assert ("```json" in app.engine.params[-1].structured.value) is fenced


@pytest.mark.parametrize("shows", [True, False])
async def test_tools_that_nothing_shows_are_named(start_app: Any, shows: bool) -> None:
    app = await start_app(tool_call_parser="hermes")
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}" if shows else ""
    app.serving.chat_template = ChatTemplate({"default": tools + "{{ messages[-1].content }}"}, {})
    async with app.http.post("/v1/chat/completions", json={"messages": HELLO, "tools": TOOLS}) as response:
        assert response.status == 200
        warning = response.headers.get("X-Sophserve-Warnings", "")
    assert ("left out by the chat template: 'tools'" in warning) is not shows
