"""What is kept of responses and conversations is shown as OpenAI's own schema says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.errors import EngineDeadError
from sophserve.text.chat_template import ChatTemplate
from tests.api.openai_schema import Judge
from tests.api.test_openai_schema import CALLS, ERROR, ITEMS, LEAST, RESPONSES, TEMPLATE, THOUGHT, TOOLS, events, found

CUSTOM = [
    {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "*** Begin"},
    {"type": "custom_tool_call_output", "call_id": "d", "output": "ok"},
]
CHAT_TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
CUSTOM_TOOL = {"type": "custom", "name": "patch", "description": "Patches."}
CALL_OF_CUSTOM = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** End"}}\n</tool_call>'
CONVERSATIONS = "/v1/conversations"


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


async def ask(app: Any, judge: Judge, schema: str, path: str, method: str = "GET", body: Any = None) -> Any:
    """An answer, which is of that schema."""
    async with app.http.request(method, path, json=body) as response:
        answer = await response.json()
    assert response.status == 200, answer
    found(judge, schema, answer)
    return answer


@pytest.mark.parametrize("given", ["Hi", ITEMS, [*ITEMS, *CUSTOM], CHAT_TURNS])
async def test_what_was_asked(app: Any, openai_schema: Judge, given: Any) -> None:
    body = LEAST[RESPONSES] | {"input": given}
    assert not openai_schema.problems("CreateResponse", body)
    app.engine.text = THOUGHT + "Yes."
    first = await ask(app, openai_schema, "Response", RESPONSES, "POST", body | {"tools": TOOLS})
    listed = await ask(app, openai_schema, "ResponseItemList", f"{RESPONSES}/{first['id']}/input_items")
    assert len(listed["data"]) == (1 if isinstance(given, str) else len(given))
    body = LEAST[RESPONSES] | {"previous_response_id": first["id"]}
    second = await ask(app, openai_schema, "Response", RESPONSES, "POST", body)
    listed = await ask(app, openai_schema, "ResponseItemList", f"{RESPONSES}/{second['id']}/input_items?limit=2")
    assert listed["data"]


async def test_calls_of_custom_tools(app: Any, openai_schema: Judge) -> None:
    app.engine.text = CALL_OF_CUSTOM
    body = LEAST[RESPONSES] | {"tools": [CUSTOM_TOOL]}
    answer = await ask(app, openai_schema, "Response", RESPONSES, "POST", body)
    assert [item["type"] for item in answer["output"]] == ["custom_tool_call"]
    streamed = await events(app, RESPONSES, body)
    for event in streamed:
        found(openai_schema, "ResponseStreamEvent", event)
    assert "response.custom_tool_call_input.done" in [event["type"] for event in streamed]


async def test_responses_in_the_background(app: Any, openai_schema: Judge) -> None:
    app.engine.gate.clear()
    body = LEAST[RESPONSES] | {"background": True}
    begun = await ask(app, openai_schema, "Response", RESPONSES, "POST", body)
    path = f"{RESPONSES}/{begun['id']}"
    await ask(app, openai_schema, "Response", path)
    await ask(app, openai_schema, "Response", f"{path}/cancel", "POST")
    app.engine.gate.set()
    for event in await events(app, RESPONSES, body):
        found(openai_schema, "ResponseStreamEvent", event)
    app.engine.failure = EngineDeadError("the worker is gone")
    failed = await events(app, RESPONSES, body)
    for event in failed:
        found(openai_schema, "ResponseStreamEvent", event)
    assert failed[-1]["type"] == "response.failed"
    await ask(app, openai_schema, "Response", f"{RESPONSES}/{failed[0]['response']['id']}")


async def test_conversations(app: Any, openai_schema: Judge) -> None:
    app.engine.text = THOUGHT + CALLS
    body = {"metadata": {"a": "b"}, "items": [*ITEMS, *CUSTOM]}
    assert not openai_schema.problems("CreateConversationBody", body)
    made = await ask(app, openai_schema, "ConversationResource", CONVERSATIONS, "POST", body)
    path = f"{CONVERSATIONS}/{made['id']}"
    await ask(app, openai_schema, "ConversationResource", path)
    await ask(app, openai_schema, "ConversationResource", path, "POST", {"metadata": {"c": "d"}})
    more = {"items": [{"role": "user", "content": "And?"}]}
    await ask(app, openai_schema, "ConversationItemList", f"{path}/items", "POST", more)
    body = LEAST[RESPONSES] | {"conversation": made["id"], "tools": [*TOOLS, CUSTOM_TOOL]}
    assert not openai_schema.problems("CreateResponse", body)
    answer = await ask(app, openai_schema, "Response", RESPONSES, "POST", body)
    assert answer["conversation"]["id"] == made["id"]
    listed = await ask(app, openai_schema, "ConversationItemList", f"{path}/items?limit=100")
    kinds = {item["type"] for item in listed["data"]}
    assert kinds == {"message", "reasoning", "function_call", "function_call_output", *(e["type"] for e in CUSTOM)}
    for item in listed["data"]:
        await ask(app, openai_schema, "ConversationItem", f"{path}/items/{item['id']}")
    last = listed["data"][-1]["id"]
    await ask(app, openai_schema, "ConversationResource", f"{path}/items/{last}", "DELETE")
    await ask(app, openai_schema, "DeletedConversationResource", path, "DELETE")
    for method in ("GET", "DELETE"):
        async with app.http.request(method, path) as response:
            assert response.status == 404
            assert not found(openai_schema, ERROR, json.loads(await response.text()))
