"""Responses in the background, their streams, their input, and conversations, as the official client sees them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from sophserve.api.openai.background import BACKGROUND
from sophserve.api.openai.response_store import STORE, Conversation
from sophserve.errors import EngineDeadError


async def until(app: Any, identity: str, *statuses: str) -> Any:
    async with asyncio.timeout(5):
        while True:
            response = await app.openai.responses.retrieve(identity)
            if response.status in statuses:
                return response
            await asyncio.sleep(0.005)


async def test_a_client_polls(app: Any) -> None:
    app.engine.gate.clear()
    begun = await app.openai.responses.create(model="tiny", input="The fox", background=True, max_output_tokens=5)
    assert (begun.status, begun.background, begun.output) == ("queued", True, [])
    assert (await app.openai.responses.retrieve(begun.id)).status == "queued"
    app.engine.gate.set()
    done = await until(app, begun.id, "incomplete")
    whole = await app.openai.responses.create(model="tiny", input="The fox", max_output_tokens=5)
    assert done.output_text == whole.output_text != "" and done.usage == whole.usage
    assert (await app.openai.responses.cancel(begun.id)).model_dump() == done.model_dump()  # it is too late
    later = await app.openai.responses.create(model="tiny", input="Go on", previous_response_id=begun.id)
    assert later.status == "completed"


async def test_a_client_comes_back_to_a_stream(app: Any) -> None:
    create = app.openai.responses.create
    whole = [event async for event in await create(model="tiny", input="The fox", stream=True)]
    app.engine.gate.clear()
    stream = await create(model="tiny", input="The fox", stream=True, background=True)
    first = await anext(aiter(stream))  # before there is any token
    assert (first.type, first.response.status) == ("response.created", "queued")
    await stream.close()
    resumed = await app.openai.responses.retrieve(first.response.id, stream=True, starting_after=0)
    app.engine.gate.set()
    events = [event async for event in resumed]
    assert [event.sequence_number for event in events] == list(range(1, len(whole)))
    assert [event.type for event in events] == [event.type for event in whole[1:]]
    assert events[-1].response.output_text == whole[-1].response.output_text
    again = await app.openai.responses.retrieve(first.response.id, stream=True, starting_after=2)
    assert [event.to_json() for event in [event async for event in again]] == [event.to_json() for event in events[2:]]
    async with app.http.get(f"/v1/responses/{first.response.id}?stream=true&starting_after=9999") as response:
        assert response.status == 200 and await response.read() == b""


async def test_one_that_is_cancelled(app: Any) -> None:
    app.engine.gate.clear()
    begun = await app.openai.responses.create(model="tiny", input="fox", background=True, stream=True)
    identity = (await anext(aiter(begun))).response.id
    cancelled = await app.openai.responses.cancel(identity)
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    await app.until_running(0)
    assert (await app.openai.responses.retrieve(identity)).model_dump() == cancelled.model_dump()
    assert [event async for event in begun][-1].response.status == "cancelled"  # whoever follows it hears so
    gone = await app.openai.responses.create(model="tiny", input="fox", background=True)
    await app.openai.responses.delete(gone.id)
    await app.until_running(0)
    with pytest.raises(NotFoundError):
        await app.openai.responses.retrieve(gone.id)
    app.engine.gate.set()
    plain = await app.openai.responses.create(model="tiny", input="fox")
    with pytest.raises(BadRequestError, match="only a response that was made with background can be cancelled"):
        await app.openai.responses.cancel(plain.id)
    with pytest.raises(BadRequestError, match="made with background and stream"):
        await app.openai.responses.retrieve(plain.id, stream=True)


async def test_clients_that_cancel_one_at_the_same_time(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = app.serving.texts.run

    async def slowly(*given: Any) -> Any:  # as for a response so long that it is worded in a thread
        await asyncio.sleep(0.05)
        return await run(*given)

    app.engine.gate.clear()
    begun = await app.openai.responses.create(model="tiny", input="fox", background=True, stream=True)
    identity = (await anext(aiter(begun))).response.id
    monkeypatch.setattr(app.serving.texts, "run", slowly)
    running = app.runner.app[BACKGROUND]
    first = asyncio.create_task(running.get(identity).cancel())
    await asyncio.sleep(0.01)
    await running.get(identity).cancel()
    await first
    assert running.get(identity) is None  # else it would be held for good, and who follows it
    assert (await app.openai.responses.retrieve(identity)).status == "cancelled"
    async with asyncio.timeout(5):
        assert [event async for event in begun][-1].response.status == "cancelled"


async def test_one_that_fails(app: Any) -> None:
    app.engine.failure = EngineDeadError("the worker was killed")
    begun = await app.openai.responses.create(model="tiny", input="fox", background=True)
    failed = await until(app, begun.id, "failed")
    assert failed.error.code == "server_error" and "the worker was killed" in failed.error.message
    stream = await app.openai.responses.create(model="tiny", input="fox", background=True, stream=True)
    assert [event async for event in stream][-1].type == "response.failed"


async def test_what_time_ends_is_no_cancellation(app: Any) -> None:
    app.engine.gate.clear()
    begun = await app.openai.responses.create(model="tiny", input="fox", background=True, extra_body={"timeout": 0.05})
    failed = await until(app, begun.id, "failed", "cancelled")
    assert failed.status == "failed" and "longer than its timeout" in failed.error.message


async def test_a_refused_one_has_a_status_of_its_own(app: Any) -> None:
    for more in ({"store": False}, {"temperature": -1}, {"input": "fox " * 500}):
        with pytest.raises(BadRequestError):
            await app.openai.responses.create(**{"model": "tiny", "input": "fox", "background": True} | more)
    status, body = await app.post("/v1/responses", {"input": "fox", "background": True, "model": "no"})
    assert status == 404 and body["error"]["code"] == "model_not_found"


async def test_input_items(app: Any) -> None:
    first = await app.openai.responses.create(model="tiny", input="one", max_output_tokens=3)
    items: list[Any] = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c", "output": "42", "id": "fc_1"},
        {"role": "user", "content": "two"},
    ]
    second = await app.openai.responses.create(model="tiny", input=items, previous_response_id=first.id)
    listed = [item async for item in app.openai.responses.input_items.list(second.id, order="asc", limit=2)]
    assert [item.type for item in listed] == ["message", "message", "function_call", "function_call_output", "message"]
    assert [getattr(item, "role", None) for item in listed] == ["user", "assistant", None, None, "user"]
    assert [part.text for part in listed[0].content] == ["one"] and listed[1].id == first.output[0].id
    assert len({item.id for item in listed}) == 5 and listed[2].id == "fc_1"
    newest = await app.openai.responses.input_items.list(second.id, limit=1)
    assert (newest.data[0].content[0].text, newest.has_more) == ("two", True)
    with pytest.raises(BadRequestError, match="limit: "):
        await app.openai.responses.input_items.list(second.id, limit=0)
    with pytest.raises(BadRequestError, match="after: there is no item"):
        await app.openai.responses.input_items.list(second.id, after="msg_no")


async def test_a_conversation(app: Any) -> None:
    conversations = app.openai.conversations
    made = await conversations.create(metadata={"a": "b"}, items=[{"role": "user", "content": "one"}])
    assert made.id.startswith("conv_") and made.metadata == {"a": "b"}
    for stream in (False, True):
        answer = await app.openai.responses.create(
            model="tiny", input="two", conversation=made.id, max_output_tokens=2, stream=stream, store=stream
        )
        if stream:
            answer = [event async for event in answer][-1].response
        assert answer.conversation.id == made.id
    prompt = app.tokenizer.decode(app.engine.prompts[-1], skip_special_tokens=False)
    assert prompt.count("one") == 1 and prompt.count("two<|im_end|>") == 2
    items = [item async for item in conversations.items.list(made.id, order="asc")]
    assert [item.role for item in items] == ["user", "user", "assistant", "user", "assistant"]
    assert items[-1].id == answer.output[0].id
    added = await conversations.items.create(made.id, items=[{"role": "user", "content": "three"}])
    assert (await conversations.items.retrieve(added.data[0].id, conversation_id=made.id)).content[0].text == "three"
    await conversations.items.delete(added.data[0].id, conversation_id=made.id)
    with pytest.raises(NotFoundError):
        await conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
    updated = await conversations.update(made.id, metadata={"c": "d"})
    assert (await conversations.retrieve(made.id)).metadata == updated.metadata == {"c": "d"}
    assert (await conversations.delete(made.id)).deleted
    with pytest.raises(NotFoundError, match="no conversation"):
        await app.openai.responses.create(model="tiny", input="two", conversation={"id": made.id})


async def test_a_conversation_keeps_what_was_said_and_nothing_else(app: Any) -> None:
    made = await app.openai.conversations.create()
    app.engine.gate.clear()
    begun = await app.openai.responses.create(model="tiny", input="one", conversation=made.id, background=True)
    await app.openai.responses.cancel(begun.id)
    assert app.runner.app[STORE].get(made.id, Conversation).items == {}
    app.engine.gate.set()
    answer = await app.openai.responses.create(model="tiny", input="one")
    with pytest.raises(BadRequestError, match="exclude each other"):
        await app.openai.responses.create(
            model="tiny", input="two", conversation=made.id, previous_response_id=answer.id
        )
    for items in ([{"type": "no_such_type"}], [{"role": "user", "content": "x"}] * 21):
        with pytest.raises(BadRequestError, match="items"):
            await app.openai.conversations.create(items=items)


async def test_a_conversation_that_does_not_fit(start_app: Any) -> None:
    app = await start_app(response_store_memory="2KiB")
    status, body = await app.post("/v1/conversations", {"items": [{"role": "user", "content": "x" * 4096}]})
    assert status == 507 and "--response-store-memory" in body["error"]["message"]
