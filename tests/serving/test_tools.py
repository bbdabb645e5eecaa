"""A random model that has to call tools does so, in every format and however it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("name", SIGNS)
def test_demanded_calls(
    name: str, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(f"{{# {SIGNS[name]} #}}{{{{ messages[0].content }}}}")
    server = start_server(make_checkpoint("qwen2", max_position_embeddings=1024), "--chat-template", str(template))
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
