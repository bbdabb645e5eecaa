"""Parameters beyond OpenAI's, most of them vLLM's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import APIError, APIStatusError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "The quick brown fox"}]


async def test_constraints_on_tokens_reach_the_engine(app: Any) -> None:
    body = {"prompt": "Hi", "max_tokens": 1, "allowed_token_ids": [5, 7], "bad_words": ["fox"]}
    assert (await app.post(TEXT, body))[0] == 200
    params = app.engine.params[0]
    assert (params.allowed_token_ids, params.bad_words) == ([5, 7], ["fox"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, range(70, 170)),
        ({"truncate_prompt_tokens": 3}, range(167, 170)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, range(167, 170)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, range(70, 73)),
        ({"truncate_prompt_tokens": 1000}, range(70, 170)),
        ({"truncate_prompt_tokens": -1, "max_tokens": 236}, range(150, 170)),
    ],
)
async def test_truncation_of_token_ids(app: Any, fields: dict[str, Any], expected: range) -> None:
    status, answer = await app.post(TEXT, {"prompt": list(range(70, 170)), "max_tokens": 2, "echo": True, **fields})
    assert status == 200 and app.engine.prompts == [list(expected)]
    assert answer["choices"][0]["text"].startswith(app.tokenizer.decode(expected))


async def test_truncation_of_texts_longer_than_the_context(app: Any) -> None:
    text = "fox " * 5000
    assert (await app.post(TEXT, {"prompt": text}))[0] == 400
    body = {"max_tokens": 6, "truncate_prompt_tokens": -1}
    status, answer = await app.post(TEXT, {"prompt": text, "echo": True, **body})
    assert status == 200 and len(app.engine.prompts[-1]) == 250
    assert len(answer["choices"][0]["text"]) < len(text)
    assert (await app.post(CHAT, {"messages": [{"role": "user", "content": text}], **body}))[0] == 200
    assert len(app.engine.prompts[-1]) == 250


async def test_best_of(app: Any) -> None:
    # A token is the less probable the higher its number, and answer i begins with token i of the prompt.
    prompts = [[70, 90, 110, 130], [140, 120, 100, 80]]
    body = {"prompt": prompts, "max_tokens": 2, "n": 2, "best_of": 4}
    status, answer = await app.post(TEXT, body)
    assert status == 200
    decode = app.tokenizer.decode
    assert [choice["text"] for choice in answer["choices"]] == [
        decode([70, 90]),
        decode([90, 110]),
        decode([100, 80]),
        decode([120, 100]),
    ]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 16
    _, answer = await app.post(TEXT, {**body, "logprobs": 1})
    assert all(len(choice["logprobs"]["tokens"]) == 2 for choice in answer["choices"])
    assert (await app.openai.completions.create(model="tiny", prompt="Hi", best_of=1, max_tokens=1)).choices


async def test_token_ids(app: Any) -> None:
    for path, fields in ((TEXT, {"prompt": [[70, 71, 72], [80, 81]]}), (CHAT, {"messages": HELLO})):
        app.engine.prompts.clear()
        request = {**fields, "n": 2, "max_tokens": 9, "return_token_ids": True}
        status, whole = await app.post(path, request)
        assert status == 200
        for choice, prompt in zip(whole["choices"], app.engine.prompts, strict=True):
            assert choice["prompt_token_ids"] == prompt
            assert choice["token_ids"][0] == prompt[choice["index"] % 2]
            assert len(choice["token_ids"]) <= 9
        create = app.openai.completions.create if path == TEXT else app.openai.chat.completions.create
        stream = await create(
            model="tiny", **fields, n=2, max_tokens=9, stream=True, extra_body={"return_token_ids": True}
        )
        streamed: list[list[int]] = [[] for _ in whole["choices"]]
        prompts: dict[int, list[int]] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] += getattr(choice, "token_ids", [])
                if hasattr(choice, "prompt_token_ids"):
                    assert choice.index not in prompts
                    prompts[choice.index] = choice.prompt_token_ids
        assert streamed == [choice["token_ids"] for choice in whole["choices"]]
        assert [prompts[index] for index in sorted(prompts)] == [c["prompt_token_ids"] for c in whole["choices"]]


async def test_chat_templates_of_requests(start_app: Any) -> None:
    app = await start_app(trust_request_chat_template=True)
    template = "{% for message in messages %}[{{ message.content }}]{% endfor %}{{ eos_token }}"
    body = {"messages": HELLO, "chat_template": template, "max_tokens": 1}
    assert (await app.post(CHAT, body))[0] == 200
    assert app.tokenizer.decode(app.engine.prompts[0], False) == "[The quick brown fox]<|im_end|>"
    for wrong in ("{% for %}", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        status, answer = await app.post(CHAT, {**body, "chat_template": wrong})
        assert status == 400, answer
    _, answer = await app.post("/apply-template", {"messages": HELLO, "chat_template": template})
    assert answer["prompt"] == "[The quick brown fox]<|im_end|>"


async def test_a_whole_answer_that_takes_too_long(app: Any) -> None:
    app.engine.gate.clear()
    for stream in (False, True):
        with pytest.raises(APIStatusError, match=r"longer than its timeout of 0\.05 s") as caught:
            await app.openai.completions.create(model="tiny", prompt="Hi", stream=stream, extra_body={"timeout": 0.05})
        assert (caught.value.status_code, caught.value.code, caught.value.type) == (408, "timeout", "timeout_error")
    await app.until_running(0)


async def test_a_stream_that_takes_too_long(app: Any) -> None:
    stream = await app.openai.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, extra_body={"timeout": 0.2}
    )
    with pytest.raises(APIError, match="timeout"):
        async for _ in stream:
            app.engine.gate.clear()
    await app.until_running(0)


async def test_a_timeout_in_time(app: Any) -> None:
    status, _ = await app.post(CHAT, {"messages": HELLO, "timeout": 30})
    assert status == 200
    app.engine.gate.clear()
    task = asyncio.create_task(app.post(TEXT, {"prompt": "Hi", "timeout": 30}))
    await app.until_running(1)
    await app.serving.drain(0.01)
    status, answer = await task
    assert status == 503 and answer["error"]["code"] == "stopping"


async def test_a_request_that_waited_too_long(app: Any) -> None:
    from sophserve.errors import RequestAborted

    app.engine.failure = RequestAborted("the request waited for 1 s", "queue_timeout")
    async with app.http.post(TEXT, json={"prompt": "Hi"}) as response:
        assert response.status == 503 and response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "queue_timeout"
