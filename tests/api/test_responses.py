"""/v1/responses, as the official client sees it."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIError, BadRequestError, NotFoundError

from sophserve.api.openai.response_store import ResponseStore, StoredResponse
from sophserve.errors import EngineDeadError

PATH = "/v1/responses"


async def test_whole_response(app: Any) -> None:
    response = await app.openai.responses.create(
        model="tiny",
        input="The quick brown fox",
        instructions="Be brief.",
        max_output_tokens=100,
        temperature=0.5,
        top_p=0.25,
        metadata={"a": "b"},
    )
    assert app.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThe quick brown fox<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = app.engine.prompts[0]
    assert response.id.startswith("resp_") and response.object == "response" and response.model == "tiny"
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    length = prompt.index(2) + 1  # the engine repeats the prompt, and with it the token that ends an answer
    assert response.output_text == app.tokenizer.decode(prompt[:length])
    [item] = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert (response.temperature, response.top_p, response.metadata) == (0.5, 0.25, {"a": "b"})
    assert (response.instructions, response.max_output_tokens) == ("Be brief.", 100)
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(prompt), length)
    assert usage.total_tokens == len(prompt) + length and usage.input_tokens_details.cached_tokens == 0


async def test_an_answer_that_is_cut(app: Any) -> None:
    response = await app.openai.responses.create(model="tiny", input="The quick brown fox", max_output_tokens=3)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    stream = await app.openai.responses.create(model="tiny", input="fox", max_output_tokens=3, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete" and last.response.status == "incomplete"
    await app.openai.responses.create(model="tiny", input="fox", max_output_tokens=100_000)
    assert app.engine.params[-1].max_tokens is None


async def test_stream(app: Any) -> None:
    request: dict[str, Any] = {"model": "tiny", "input": "The quick 🙂 fox", "top_logprobs": 2}
    whole = await app.openai.responses.create(**request)
    events = [event async for event in await app.openai.responses.create(**request, stream=True)]
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == whole.output_text
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    final = events[-1].response
    assert final.output_text == whole.output_text and final.usage == whole.usage
    assert final.output[0].id == events[4].item_id and final.id == events[0].response.id
    assert final.output[0].content[0].logprobs == whole.output[0].content[0].logprobs != []
    assert [entry for event in events[4:-4] for entry in event.logprobs] != []
    async with app.openai.responses.stream(**request) as helper:
        assert (await helper.get_final_response()).output_text == whole.output_text


async def test_items(app: Any) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Think."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So", "annotations": []}]},
        {"role": "user", "content": "And?"},
    ]
    await app.openai.responses.create(model="tiny", input=items, instructions="Be brief.", max_output_tokens=1)
    assert app.prompt == (
        "<|im_start|>system\nBe brief.\n\nThink.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nSo<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_stored_responses(app: Any, stream: bool) -> None:
    create = app.openai.responses.create
    first = await create(model="tiny", input="one", instructions="Sing.", stream=stream)
    if stream:
        first = [event async for event in first][-1].response
    again = await app.openai.responses.retrieve(first.id)
    assert again.model_dump() == first.model_dump()
    second = await create(model="tiny", input="two", previous_response_id=first.id, max_output_tokens=1)
    assert app.prompt == (
        f"<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n{first.output_text}<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second.previous_response_id == first.id
    await app.openai.responses.delete(first.id)
    for call in (app.openai.responses.retrieve, app.openai.responses.delete):
        with pytest.raises(NotFoundError, match="not stored, or is forgotten"):
            await call(first.id)
    with pytest.raises(BadRequestError) as caught:
        await create(model="tiny", input="two", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"


async def test_responses_that_are_not_stored(start_app: Any) -> None:
    app = await start_app()
    response = await app.openai.responses.create(model="tiny", input="one", store=False)
    assert not response.store
    with pytest.raises(NotFoundError):
        await app.openai.responses.retrieve(response.id)
    app = await start_app(response_store_memory="0")
    response = await app.openai.responses.create(model="tiny", input="one")
    with pytest.raises(NotFoundError):
        await app.openai.responses.retrieve(response.id)


def test_the_store_is_bounded() -> None:
    def response(text: str) -> StoredResponse:
        return StoredResponse(b'{"text": "%b"}' % text.encode(), {"msg_1": text.encode()}, {})

    store = ResponseStore(1000)
    for number in range(5):
        store.add(f"r{number}", response("x" * 150))
        assert store.get("r0", StoredResponse)  # and so it is not the longest unused one
    assert store.get("r1", StoredResponse) is None and store.get("r4", StoredResponse)
    assert not store.add("large", response("x" * 1000))
    assert store.get("large", StoredResponse) is None and store.get("r4", StoredResponse)
    assert store.delete("r4") and not store.delete("r4") and store.get("r4", StoredResponse) is None
    for number in range(100):
        store.add(f"s{number}", response("x" * 150))
    assert store.get("s99", StoredResponse) and store.get("r0", StoredResponse) is None


async def test_input_tokens(app: Any) -> None:
    count = await app.openai.responses.input_tokens.count(model="tiny", input="The fox", instructions="Be brief.")
    await app.openai.responses.create(model="tiny", input="The fox", instructions="Be brief.", max_output_tokens=1)
    assert count.input_tokens == len(app.engine.prompts[0])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "str"),
        ({"input": []}, "messages", "empty"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "computer_call"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing"),
        ({"input": [{"content": "Hi"}]}, "input[0].role", "missing"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
            "sees no images",
        ),
        ({"background": True, "store": False}, "background", "needs store"),
        ({"temperature": -1}, "temperature", "between 0"),
        ({"max_output_tokens": -1}, "max_tokens", "at least 0"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "not stored"),
        ({"text": {"format": {"type": "yaml"}}}, "response_format", "yaml"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools", "not supported"),
        ({"input": "fox " * 3000}, "prompt", "256"),
    ],
)
async def test_wrong_requests(app: Any, fields: dict[str, Any], param: str, words: str) -> None:
    status, answer = await app.post(PATH, {"model": "tiny", "input": "Hi"} | fields)
    assert status == 400, answer
    assert words in answer["error"]["message"]
    assert answer["error"]["param"] == param or param == "top_logprobs"


async def test_tools_that_only_openai_runs_are_left_out(app: Any) -> None:
    tools: list[Any] = [{"type": "web_search"}]
    response = await app.openai.responses.create(model="tiny", input="Hi", tools=tools, max_output_tokens=10**30)
    assert (await app.openai.responses.retrieve(response.id)).max_output_tokens == 10**30


async def test_failures(app: Any) -> None:
    with pytest.raises(APIError, match="the worker is gone"):
        async for _ in await app.openai.responses.create(model="tiny", input="The quick brown fox", stream=True):
            app.engine.failure = EngineDeadError("the worker is gone")
    await app.until_running(0)
    status, answer = await app.post(PATH, {"input": "Hi"})
    assert status == 500 and answer["error"]["code"] == "generation_failed"
