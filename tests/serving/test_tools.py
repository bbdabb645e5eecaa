"""A random model that has to call tools does so, in every format and however it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.text.tokenizer import Tokenizer

FUNCTION = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Köln", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS: list[Any] = [{"type": "function", "function": function} for function in (FUNCTION, NOW)]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
SIGNS = {
    "hermes": "<tool_call>",
    "llama3_json": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
    "deepseek_v3": "<｜tool▁call▁begin｜>",
    "pythonic": "<|python_start|>",
}


START = {"llama3_json": "{", "pythonic": "["}


@pytest.mark.parametrize(
    "name",
    [name if name == "pythonic" else pytest.param(name, marks=pytest.mark.slow) for name in SIGNS],
)
def test_calls_of_a_random_model(
    name: str, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(f"{{# {SIGNS[name]} #}}{{{{ messages[0].content }}}}")
    model = make_checkpoint("qwen2", max_position_embeddings=1024)
    server = start_server(model, "--chat-template", str(template))
    create = server.client().chat.completions.create
    fields: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
    for seed in range(3):
        answer = create(**fields, tool_choice=NAMED, seed=seed)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
        [call] = message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and arguments["city"] in ("Köln", "北京")
        assert arguments.keys() == {"city", "days"} and arguments["days"] in range(1, 10)
        stream = create(**fields, tool_choice=NAMED, seed=seed, stream=True)
        deltas = [delta for chunk in stream for delta in chunk.choices[0].delta.tool_calls or []]
        assert deltas[0].function.name == "get_weather"
        assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    answer = create(**fields, tool_choice="required", parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls" and len(answer.choices[0].message.tool_calls) == 1
    strict: Any = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS]
    fields |= {"tools": strict, "parallel_tool_calls": False, "max_tokens": 200}
    for choice in ("auto", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS[:1]}}):
        if name in START:  # what a call begins with makes it one, without a demand
            [token] = Tokenizer.from_directory(model).encode(START[name])
            fields["logit_bias"] = {token: 100}
        answer = create(**fields, tool_choice=choice)
        if name in START:
            [call] = answer.choices[0].message.tool_calls
            assert call.function.name in ("get_weather", *["now"] * (choice == "auto"))
            assert call.function.name == "now" or json.loads(call.function.arguments).keys() == {"city", "days"}
