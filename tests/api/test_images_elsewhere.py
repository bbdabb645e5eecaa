"""Images in /v1/responses, conversations, /v1/messages and batches."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from anthropic import AsyncAnthropic, BadRequestError

from tests.api.images import PLACEHOLDER, digest_of, picture
from tests.api.openai_schema import Judge
from tests.api.test_images import A, B, C, shown, text, user

RESPONSES = "/v1/responses"


def given(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url, **more}


def said(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def block(url: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    return {"type": "image", "source": source}


def digests(app: Any) -> list[bytes]:
    return [digest for digest, _ in shown(app)]


@pytest.mark.parametrize("stream", [False, True])
async def test_responses(seeing: Any, openai_schema: Judge, stream: bool) -> None:
    items: list[Any] = [
        {"role": "user", "content": [said("one"), given(A, detail="low")]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [said("file:"), given(B)]},
        {"role": "user", "content": [given(C, detail="auto"), said("two")]},
    ]
    assert not openai_schema.problems("CreateResponse", {"model": "tiny", "input": items})
    options: dict[str, Any] = {"model": "tiny", "input": items, "max_output_tokens": 2}
    if stream:
        async with await seeing.openai.responses.create(**options, stream=True) as events:
            answer = [event async for event in events][-1].response
    else:
        answer = await seeing.openai.responses.create(**options)
    assert digests(seeing) == [digest_of(A, "low"), digest_of(B), digest_of(C)]
    details = answer.usage.input_tokens_details
    assert details.image_tokens == 9 and details.text_tokens == answer.usage.input_tokens - 9
    assert not openai_schema.problems("Response", answer.to_dict())
    counted = await seeing.openai.responses.input_tokens.count(model="tiny", input=items)
    assert counted.input_tokens == answer.usage.input_tokens
    status, error = await seeing.post(
        RESPONSES, {"input": [*items[:2], items[2] | {"output": [given("data:image/png;base64,!!")]}]}
    )
    assert (status, error["error"]["param"]) == (400, "input[2].output[0].image_url")


async def test_images_of_earlier_responses(seeing: Any, openai_schema: Judge) -> None:
    first = await seeing.openai.responses.create(
        model="tiny", input=[{"role": "user", "content": [given(A), said("x")]}], max_output_tokens=2
    )
    await seeing.openai.responses.create(
        model="tiny",
        previous_response_id=first.id,
        input=[{"role": "user", "content": [said("y"), given(B, detail="high")]}],
        max_output_tokens=2,
    )
    assert digests(seeing) == [digest_of(A), digest_of(B, "high")]
    async with seeing.http.get(f"{RESPONSES}/{first.id}/input_items") as response:
        listed = await response.json()
    assert not openai_schema.problems("ResponseItemList", listed)
    assert listed["data"][0]["content"][0] == {"type": "input_image", "image_url": A, "detail": "auto"}


async def test_images_of_conversations(seeing: Any, openai_schema: Judge) -> None:
    output = {"type": "function_call_output", "call_id": "c", "output": [given(B)]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    chat_form = user({"type": "image_url", "image_url": {"url": C, "detail": "low"}})
    conversation = await seeing.openai.conversations.create(
        items=[{"role": "user", "content": [given(A), said("x")]}, call, output, chat_form]
    )
    await seeing.openai.responses.create(model="tiny", conversation=conversation.id, input="y", max_output_tokens=2)
    assert digests(seeing) == [digest_of(A), digest_of(B), digest_of(C, "low")]
    async with seeing.http.get(f"/v1/conversations/{conversation.id}/items?limit=100") as response:
        listed = await response.json()
    assert not openai_schema.problems("ConversationItemList", listed)
    large = base64.b64encode(b"1 " + b"x" * 200_000).decode()
    status, _ = await seeing.post("/v1/conversations", {"items": [user(given(large))]})
    assert status == 200
    status, error = await seeing.post("/v1/conversations", {"items": [user(given("ftp://x"))]})
    assert (status, error["error"]["param"]) == (400, "items[0].content[0].image_url")


async def test_conversations_of_a_model_that_sees_nothing(app: Any) -> None:
    status, error = await app.post("/v1/conversations", {"items": [user(given(A))]})
    assert (status, error["error"]["param"]) == (400, "items[0].content[0].image_url")
    assert "sees no images" in error["error"]["message"]


async def test_images_of_the_system_in_responses(seeing: Any) -> None:
    """They stay where they are among its texts."""
    items = [{"role": "developer", "content": [said("a"), given(A)]}, {"role": "user", "content": "x"}]
    await seeing.post(RESPONSES, {"input": items, "instructions": "i", "max_output_tokens": 1})
    assert digests(seeing) == [digest_of(A)]
    assert seeing.prompt.index("i") < seeing.prompt.index(PLACEHOLDER) < seeing.prompt.index("user")


@pytest.fixture
async def claude(seeing: Any) -> Any:
    async with AsyncAnthropic(base_url=seeing.url, api_key="secret", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_messages(seeing: Any, claude: AsyncAnthropic, stream: bool) -> None:
    document = {"type": "document", "title": "t", "source": {"type": "content", "content": [text("d"), block(C)]}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [text("r"), block(B)]}
    conversation: Any = [
        {"role": "user", "content": [block(A), text("one"), document]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {
            "role": "user",
            "content": [result, text("two"), {"type": "image", "source": {"type": "url", "url": "http://x/y"}}],
        },
    ]
    options: Any = {"model": "tiny", "messages": conversation}
    if stream:
        async with claude.messages.stream(**options, max_tokens=2) as events:
            answer = await events.get_final_message()
    else:
        answer = await claude.messages.create(**options, max_tokens=2)
    assert digests(seeing)[:3] == [digest_of(A), digest_of(C), digest_of(B)] and len(shown(seeing)) == 4
    assert answer.usage.input_tokens == len(seeing.engine.prompts[-1])
    assert f"[{PLACEHOLDER * 3}]onet\nd[{PLACEHOLDER}]" in seeing.prompt
    counted = await claude.messages.count_tokens(**options)
    assert counted.input_tokens == answer.usage.input_tokens
    assert [source.path for source in seeing.serving.images.loaded[:4]] == [
        "messages[0].content[0].source.data",
        "messages[0].content[2].source.content[1].source.data",
        "messages[2].content[0].content[1].source.data",
        "messages[2].content[2].source.url",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "image", "source": {"type": "file", "file_id": "f"}}], "messages[0].content[0]: source must be"),
        ([block("data:,!!")], "messages[0].content[0].source.data: the image is not valid base64"),
        ([{"type": "video", "source": {"type": "url", "url": "x"}}], "blocks of type 'video' are not supported"),
        ([{"type": "document", "source": block(A)["source"]}], "documents are read from a source of type text"),
        ([text(PLACEHOLDER), block(A)], f"{PLACEHOLDER} is 2 times in the prompt, for 1 images"),
    ],
)
async def test_messages_that_are_refused(claude: AsyncAnthropic, content: Any, words: str) -> None:
    messages: Any = [{"role": "user", "content": content}]
    with pytest.raises(BadRequestError) as caught:
        await claude.messages.create(model="tiny", messages=messages, max_tokens=2)
    assert words in caught.value.message


async def test_messages_to_a_model_that_sees_nothing(app: Any, client: AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": [block(A)]}]
    for ask in (client.messages.create, client.messages.count_tokens):
        more: Any = {"max_tokens": 1} if ask == client.messages.create else {}
        with pytest.raises(BadRequestError, match="this model sees no images; send text only"):
            await ask(model="tiny", messages=messages, **more)


async def test_an_image_of_a_megabyte(seeing: Any) -> None:
    """A body that is read in a thread."""
    large = base64.b64encode(b"4 " + b"x" * 1_000_000).decode()
    status, _ = await seeing.post(RESPONSES, {"input": [user(given(large))], "max_output_tokens": 1})
    assert status == 200 and seeing.engine.items[-1][0].length == 4
    assert picture("x", 4) != large
