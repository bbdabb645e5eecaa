"""Without --log-requests the log says which field was refused and why, and nothing of what came in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.logs import JsonFormatter

TEXT, CHAT, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
SECRET = "hunter2hunter2"
HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}

REFUSED = [
    # path, fields, the field in the log
    (TEXT, {"prompt": "Hi", "structured_outputs": {"regex": f"{SECRET}-[0-9"}}, "structured_outputs.regex"),
    (TEXT, {"prompt": "Hi", "guided_grammar": f"start: {SECRET}"}, "guided_grammar"),
    (TEXT, {"prompt": "Hi", "guided_json": {"type": SECRET}}, "guided_json"),
    (TEXT, {"prompt": "Hi", "guided_json": f"{{{SECRET}"}, "guided_json"),
    (TEXT, {"prompt": "Hi", "model": SECRET}, "model"),
    (TEXT, {"prompt": {SECRET: 1}}, "prompt"),
    (TEXT, {"prompt": "Hi", "temperature": SECRET}, "temperature"),
    (TEXT, {"prompt": "Hi", "request_id": f"{SECRET} {SECRET}"}, "request_id"),
    (TEXT, {"prompt": "Hi", "truncation_side": SECRET}, "truncation_side"),
    (TEXT, {"prompt": "Hi", "logit_bias": {SECRET: 1}}, "logit_bias"),
    (TEXT, {"prompt": "Hi", "stop": [SECRET] * 1000}, "stop"),
    (TEXT, {"prompt": [SECRET, 1]}, "prompt"),
    (CHAT, {"messages": [{"role": SECRET, "content": None}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": SECRET, "text": SECRET}]}]}, "messages[0].content[0]"),
    (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": SECRET}, None),
    (CHAT, {"messages": HELLO, "response_format": {"type": SECRET}}, "response_format"),
    (CHAT, {"messages": HELLO, "chat_template": SECRET}, "chat_template"),
    (CHAT, {"messages": HELLO, SECRET: 1}, "the request"),
    (RESPONSES, {"input": "Hi", "previous_response_id": SECRET}, "previous_response_id"),
    (RESPONSES, {"input": [{"type": SECRET}]}, None),
    (MESSAGES, {"messages": [{"role": SECRET, "content": "Hi"}], "max_tokens": 1}, None),
    (MESSAGES, {"messages": HELLO, "max_tokens": 1, "thinking": {"type": SECRET}}, None),
    ("/v1/embeddings", {"input": "Hi", "encoding_format": SECRET}, "encoding_format"),
    ("/tokenize", {"prompt": SECRET, "content": SECRET}, "prompt"),
]


@pytest.mark.parametrize(("path", "fields", "name"), REFUSED)
async def test_a_refusal_names_no_value(
    start_app: Any, caplog: pytest.LogCaptureFixture, path: str, fields: dict[str, Any], name: str | None
) -> None:
    caplog.set_level("DEBUG")
    app = await start_app(reject_unknown_fields=True)
    status, answer = await app.post(path, fields)
    assert 400 <= status < 500, answer
    assert SECRET not in caplog.text
    [line] = [r for r in caplog.records if r.name == "sophserve.api.http.error_middleware"]
    error = json.loads(JsonFormatter("server").format(line))["error"]
    assert ".py:" in error and (name is None or error.startswith(f"{name}: "))


async def test_bodies_and_unknown_names_are_not_logged(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for body in (f'{{"{SECRET}', SECRET, f'["{SECRET}"]', f'{{"prompt": "{SECRET}" "{SECRET}"}}'):
        assert (await app.post(TEXT, body.encode()))[0] == 400
    assert (await app.post(TEXT, {"prompt": SECRET, SECRET: 1, "max_tokens": 1}))[0] == 200
    assert SECRET not in caplog.text and "ignored 1 unknown fields" in caplog.text


async def test_the_servers_own_words_are_logged(start_app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    app = await start_app(api_key=["k"])
    await app.post(TEXT, {"prompt": "Hi"})
    assert "send a valid API key" in caplog.text
    await app.post(TEXT, {"prompt": "Hi", "temperature": "x"}, headers={"x-api-key": "k"})
    assert "error='temperature: must be float | null, got str (body.py:" in caplog.text
