"""Every field of OpenAI's schema is known by name: used, without effect and said so, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from sophserve.api.generation.request_bodies import ChatRequest, CompletionRequest
from sophserve.api.http import body
from sophserve.api.openai.embeddings import EmbeddingRequest
from sophserve.api.openai.response_input import InputTokensRequest, ResponsesRequest
from tests.api.openai_schema import Judge

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ENDPOINTS: dict[str, tuple[str, type, dict[str, Any]]] = {
    "CreateChatCompletionRequest": ("/v1/chat/completions", ChatRequest, CHAT),
    "CreateCompletionRequest": ("/v1/completions", CompletionRequest, {"prompt": "Hi", "max_tokens": 2}),
    "CreateEmbeddingRequest": ("/v1/embeddings", EmbeddingRequest, {"input": "Hi"}),
    "CreateResponse": ("/v1/responses", ResponsesRequest, {"input": "Hi", "max_output_tokens": 2}),
    "TokenCountsBody": ("/v1/responses/input_tokens", InputTokensRequest, {"input": "Hi"}),
}
# Of OpenAI's schema of August 2026, those that are not fields of ours.
FIELDS = {
    "CreateChatCompletionRequest": """audio function_call functions metadata modalities moderation
        prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier service_tier store user verbosity
        web_search_options""",
    "CreateCompletionRequest": "suffix user",
    "CreateEmbeddingRequest": "user",
    "CreateResponse": """context_management max_tool_calls moderation prompt_cache_key prompt_cache_options
        prompt_cache_retention safety_identifier service_tier stream_options user""",
    "TokenCountsBody": "",
}
REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prompt": {"id": "pmpt_1"},
    "suffix": "!",
    "web_search_options": {"search_context_size": "low"},
}
NOTED = {
    "context_management": [{"type": "compaction"}],
    "max_tool_calls": 3,
    "prompt_cache_options": {"ttl": "24h"},
    "prompt_cache_retention": "24h",
    "verbosity": "low",
}
QUIET = {
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "me",
    "service_tier": "flex",
    "store": True,
    "stream_options": {"include_obfuscation": False},
    "user": "me",
}


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_every_field_is_known(app: Any, name: str) -> None:
    path, kind, request = ENDPOINTS[name]
    for field in FIELDS[name].split():
        assert field not in kind.__struct_fields__
        value = {**REFUSED, **NOTED, **QUIET}[field]
        async with app.http.post(path, json={**request, field: value}) as response:
            answer, warning = await response.json(), response.headers.get("X-Sophserve-Warnings", "")
        if field in REFUSED:
            assert (response.status, answer["error"]["param"]) == (400, field)
            assert answer["error"]["code"] == "unsupported_parameter"
        else:
            assert (response.status, warning) == (200, f"without effect: '{field}'" if field in NOTED else "")
        async with app.http.post(path, json={**request, field: None}) as response:
            assert response.status == 200 and "X-Sophserve-Warnings" not in response.headers


async def test_what_only_some_endpoints_cannot_do(app: Any) -> None:
    path, _, request = ENDPOINTS["CreateResponse"]
    status, answer = await app.post(path, {**request, "prompt": REFUSED["prompt"]})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    for more, warning in (
        ({"text": {"verbosity": "low"}}, "without effect: 'text.verbosity'"),
        ({"truncation": "auto", "verbosity": "low"}, "without effect: 'verbosity'; without effect: 'truncation'"),
        ({"truncation": "disabled", "text": {"format": {"type": "text"}}}, None),
        ({"tools": [{"type": "web_search"}, {"type": "custom", "name": "f"}]}, "'web_search', 'custom'"),
    ):
        async with app.http.post(path, json=request | more) as response:
            assert response.status == 200, await response.text()
            assert (response.headers.get("X-Sophserve-Warnings") or "").endswith(warning or "")
            assert (warning is None) == ("X-Sophserve-Warnings" not in response.headers)


def test_the_lists_are_those_of_the_schema(openai_schema: Judge) -> None:
    for name, (_, kind, _) in ENDPOINTS.items():
        named = set(openai_schema.fields(name))
        assert named - set(kind.__struct_fields__) == set(FIELDS[name].split())
        known = set(kind.__struct_fields__) | body._WITHOUT_EFFECT | body._NOTED | body._UNSUPPORTED
        assert named <= known


async def test_tools_of_other_types(app: Any) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    for tool, kind in (
        ({"type": "custom", "custom": {"name": "f"}}, "custom"),
        ({"type": "web_search_preview"}, "web_search_preview"),
    ):
        status, answer = await app.post("/v1/chat/completions", {**CHAT, "tools": [function, tool]})
        assert (status, answer["error"]["param"]) == (400, "tools[1].type")
        assert f"tools of type '{kind}' are not supported" in answer["error"]["message"]
    tools = [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"name": "g", "input_schema": {"type": "object"}},
        {"type": "custom", "name": "h", "input_schema": {"type": "object"}},
    ]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        request = {**CHAT, "tool_choice": {"type": "none"}}
        async with app.http.post(path, json={**request, "tools": tools}) as response:
            assert response.status == 200, await response.text()
            left_out = "tools of types that are not supported were left out: 'web_search_20250305'"
            assert response.headers["X-Sophserve-Warnings"].startswith(left_out)
        async with app.http.post(path, json={**request, "tools": tools[1:]}) as response:
            assert "left out" not in response.headers.get("X-Sophserve-Warnings", "")
