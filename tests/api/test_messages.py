"""/v1/messages, as Anthropic's client sees it."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import APIStatusError, AsyncAnthropic, AuthenticationError, BadRequestError, NotFoundError

from sophserve.errors import EngineDeadError

HELLO: list[Any] = [{"role": "user", "content": "The quick brown fox"}]
PATH = "/v1/messages"


async def test_whole_message(app: Any, client: AsyncAnthropic) -> None:
    message = await client.messages.create(model="tiny", max_tokens=6, messages=HELLO, system="Be brief.")
    assert app.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThe quick brown fox<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert message.id.startswith("msg_") and (message.type, message.role, message.model) == (
        "message",
        "assistant",
        "tiny",
    )
    [block] = message.content
    assert block.type == "text" and block.text == app.tokenizer.decode(app.engine.prompts[0][:6])
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.input_tokens == len(app.engine.prompts[0]) and message.usage.output_tokens == 6


async def test_stream_equals_the_whole(app: Any, client: AsyncAnthropic) -> None:
    request: dict[str, Any] = {"model": "tiny", "max_tokens": 100, "messages": HELLO}
    whole = await client.messages.create(**request)
    assert whole.stop_reason == "end_turn"
    stream = await client.messages.create(**request, stream=True)
    events = [event async for event in stream]
    types = [event.type for event in events]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[2:-3]) == {"content_block_delta"} and len(types) > 8
    async with client.messages.stream(**request) as helper:
        final = await helper.get_final_message()
    assert [block.text for block in final.content] == [block.text for block in whole.content]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens


async def test_stop_sequences(app: Any, client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model="tiny", max_tokens=99, messages=[{"role": "user", "content": "one STOP two"}], stop_sequences=["STOP"]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "STOP")
    assert message.content[0].text == "user\none "


async def test_an_answer_without_text(app: Any, client: AsyncAnthropic) -> None:
    request: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": HELLO, "stop_sequences": ["user"]}
    message = await client.messages.create(**request)
    assert (message.content, message.stop_sequence) == ([], "user")
    events = [event.type async for event in await client.messages.create(**request, stream=True)]
    assert events == ["message_start", "message_delta", "message_stop"]


async def test_sampling_parameters(app: Any, client: AsyncAnthropic) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 5}
    await client.messages.create(model="tiny", max_tokens=9, messages=HELLO, extra_body=sampling)
    params = app.engine.params[0]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.25, 5, 9)
    # max_tokens is a limit: what does not fit in the context is not asked for.
    await client.messages.create(model="tiny", max_tokens=1000, messages=HELLO)
    assert app.engine.params[1].max_tokens is None


async def test_blocks(app: Any, client: AsyncAnthropic) -> None:
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "42"}]},
        {"role": "assistant", "content": "It is"},
    ]
    system: list[Any] = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    await client.messages.create(model="tiny", max_tokens=1, messages=turns, system=system)
    assert app.prompt == (
        "<|im_start|>system\nOne.\nTwo.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nIt is"
    )


async def test_a_prompt_for_the_cache_alone(app: Any, client: AsyncAnthropic) -> None:
    """max_tokens 0 fills the prompt cache without generating a response, as the client's own text has it."""
    message = await client.messages.create(model="tiny", max_tokens=0, messages=HELLO)
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)
    assert message.usage.input_tokens == len(app.engine.prompts[0])


async def test_count_tokens(app: Any, client: AsyncAnthropic) -> None:
    count = await client.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.")
    await client.messages.create(model="tiny", max_tokens=1, messages=HELLO, system="Be brief.")
    assert count.input_tokens == len(app.engine.prompts[0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "at least 0"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"output_config": {"format": {"type": "yaml"}}}, "response_format"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": "fox " * 3000}]}, "256"),
    ],
)
async def test_wrong_requests(app: Any, fields: dict[str, Any], words: str) -> None:
    body = {"model": "tiny", "max_tokens": 5, "messages": HELLO} | fields
    status, answer = await app.post(PATH, body)
    assert status == 400, answer
    assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
    assert words in answer["error"]["message"]


async def test_tools_are_shown_with_tool_choice_none(app: Any, client: AsyncAnthropic) -> None:
    await client.messages.create(
        model="tiny",
        max_tokens=1,
        messages=HELLO,
        tools=[{"name": "f", "input_schema": {"type": "object"}}],
        tool_choice={"type": "none"},
    )


async def test_errors_in_their_form(start_app: Any) -> None:
    app = await start_app(api_key=["secret"])
    async with AsyncAnthropic(base_url=app.url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError):
            await client.messages.create(model="tiny", max_tokens=1, messages=HELLO)
    async with AsyncAnthropic(base_url=app.url, api_key="secret", max_retries=0) as client:
        with pytest.raises(NotFoundError) as caught:
            await client.messages.create(model="other", max_tokens=1, messages=HELLO)
        assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        with pytest.raises(BadRequestError):
            await client.messages.create(model="tiny", max_tokens=1, messages=[])
        with pytest.raises(APIStatusError, match="the worker is gone"):
            async for _ in await client.messages.create(model="tiny", max_tokens=90, messages=HELLO, stream=True):
                app.engine.failure = EngineDeadError("the worker is gone")
    await app.until_running(0)
