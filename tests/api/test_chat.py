"""/v1/chat/completions, as the official client sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

HELLO: list[Any] = [{"role": "user", "content": "The quick brown fox"}]


async def test_whole_answer(app: Any) -> None:
    answer = await app.openai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6)
    expected = app.tokenizer.decode(app.engine.prompts[0][:6])
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.created > 1_700_000_000
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content == expected
    assert choice.logprobs is None
    assert answer.usage.prompt_tokens == len(app.engine.prompts[0])
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_template_is_rendered(app: Any) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": "Go on", "name": "Ann"},
    ]
    await app.openai.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert app.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_generation_prompt_and_continued_message(app: Any) -> None:
    create = app.openai.chat.completions.create
    await create(model="tiny", messages=HELLO, max_tokens=1, extra_body={"add_generation_prompt": False})
    assert app.prompt == "<|im_start|>user\nThe quick brown fox<|im_end|>\n"
    messages = [*HELLO, {"role": "assistant", "content": "jumps over"}]
    await create(model="tiny", messages=messages, max_tokens=1, extra_body={"continue_final_message": True})
    assert app.prompt.endswith("<|im_start|>assistant\njumps over")
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(BadRequestError, match="exclude each other"):
        await create(model="tiny", messages=messages, extra_body=both)


async def test_stream_equals_the_whole(app: Any) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": HELLO, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = await app.openai.chat.completions.create(**request)
    stream = await app.openai.chat.completions.create(**request, stream=True)
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)
    assert len({choice.message.content for choice in whole.choices}) > 1
    for expected in whole.choices:
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == expected.index]
        assert own[0].delta.role == "assistant" and own[0].delta.content == ""
        assert "".join(choice.delta.content or "" for choice in own) == expected.message.content
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["stop"]
        streamed = [entry for choice in own if choice.logprobs for entry in choice.logprobs.content]
        assert streamed == expected.logprobs.content
    # The answers take turns.
    order = [choice.index for chunk in chunks for choice in chunk.choices]
    assert order != sorted(order)


async def test_stream_ends_with_done(app: Any) -> None:
    body = {"messages": HELLO, "stream": True, "max_tokens": 2}
    async with app.http.post("/v1/chat/completions", json=body) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Request-Id"].startswith("chatcmpl-")
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


async def test_usage_in_streams(app: Any) -> None:
    create = app.openai.chat.completions.create
    request: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "stream": True}
    last = [c async for c in await create(**request, stream_options={"include_usage": True})][-1]
    prompt = len(app.engine.prompts[0])
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (prompt, 4)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [c async for c in await create(**request, stream_options=options)]
    used = [c.usage.completion_tokens for c in chunks]
    assert used == sorted(used) and used[0] >= 1 and used[-1] == 4


async def test_logprobs(app: Any) -> None:
    answer = await app.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "🙂"}], max_tokens=8, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    tokens = app.engine.prompts[0][:8]
    assert [bytes(entry.bytes) for entry in content] == [app.tokenizer.token_bytes(token) for token in tokens]
    assert [entry.logprob for entry in content] == pytest.approx([-0.25 - token / 1024 for token in tokens])
    assert [entry.token for entry in content] == [app.tokenizer.token_text(token) for token in tokens]
    assert all([top.logprob for top in entry.top_logprobs] == [-0.5, -1.0, -1.5] for entry in content)
    answer = await app.openai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, logprobs=True)
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


async def test_prompt_logprobs(app: Any) -> None:
    status, answer = await app.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1, "prompt_logprobs": 1})
    assert status == 200
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    prompt = app.engine.prompts[0]
    assert first is None and len(rest) == len(prompt) - 1
    for token, entries in zip(prompt[1:], rest, strict=True):
        assert entries[str(token)]["decoded_token"] == app.tokenizer.token_text(token)
        assert len(entries) == 2 or str(11) in entries


async def test_stop(app: Any) -> None:
    create = app.openai.chat.completions.create
    messages: list[Any] = [{"role": "user", "content": "one STOP two"}]
    answer = await create(model="tiny", messages=messages, stop=["never", "STOP"])
    assert answer.choices[0].message.content == "user\none "
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].stop_reason == "STOP"
    stream = await create(model="tiny", messages=messages, stop="STOP", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user\none "
    assert chunks[-1].choices[0].stop_reason == "STOP"
    kept = await create(model="tiny", messages=messages, stop="STOP", extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == "user\none STOP"
    token = app.engine.prompts[0][3]
    answer = await create(model="tiny", messages=messages, extra_body={"stop_token_ids": [token]})
    assert answer.choices[0].stop_reason == token
    assert answer.usage.completion_tokens == 4


async def test_sampling_parameters_reach_the_engine(app: Any) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}
    await app.openai.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0.5,
        top_p=0.25,
        seed=-3,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"12": -100, "7": 2.5},
        max_completion_tokens=9,
        user="somebody",
        extra_body=extra
        | {"priority": -2, "cache_salt": "mine"}
        | {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    )
    assert app.engine.scheduling == [(-2, "mine")]
    params = app.engine.params[0]
    for name, value in extra.items():
        assert getattr(params, name) == value
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.5, 0.25, -3, 9)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.logit_bias == {12: -100, 7: 2.5}
    assert not params.skip_special_tokens and not params.spaces_between_special_tokens


async def test_defaults(start_app: Any) -> None:
    app = await start_app(defaults={"temperature": 0.7, "top_k": 20})
    await app.post("/v1/chat/completions", {"messages": HELLO})
    await app.post("/v1/chat/completions", {"messages": HELLO, "temperature": 0, "top_k": None})
    first, second = app.engine.params
    assert (first.temperature, first.top_k, first.max_tokens) == (0.7, 20, None)
    assert (second.temperature, second.top_k) == (0, 20)
    app = await start_app(defaults={"max_tokens": 250})
    for path, body in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": [70] * 100})):
        assert (await app.post(f"/v1/{path}", body))[0] == 200
        assert app.engine.params[-1].max_tokens is None
        assert (await app.post(f"/v1/{path}", {**body, "max_tokens": 250}))[0] == 400


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
async def test_names_of_max_tokens(app: Any, name: str) -> None:
    _, answer = await app.post("/v1/chat/completions", {"messages": HELLO, name: 3})
    assert answer["usage"]["completion_tokens"] == 3


async def test_tools_are_shown_with_tool_choice_none(app: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    body = {"messages": messages, "tools": tools, "tool_choice": "none", "max_tokens": 1}
    assert (await app.post("/v1/chat/completions", body))[0] == 200
    for choice in (None, "auto", "required", {"type": "function", "function": {"name": "f"}}):
        status, answer = await app.post("/v1/chat/completions", {**body, "tool_choice": choice})
        assert status == 400 and "not supported" in answer["error"]["message"]
        assert answer["error"]["param"] == "tools"


async def test_blocking_client(app: Any) -> None:
    def ask() -> tuple[str, str]:
        with OpenAI(base_url=f"{app.url}/v1", api_key="none") as client:
            whole = client.chat.completions.create(model="tiny", messages=HELLO)
            stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content or "", text

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed != ""


async def test_prompts_that_cannot_fit(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, per_token = 256, app.serving.characters_per_token
    assert per_token == max(len(app.tokenizer.token_bytes(token)) for token in range(512))
    encoded = []
    encode = app.tokenizer.encode
    monkeypatch.setattr(app.tokenizer, "encode", lambda *args: encoded.append(args) or encode(*args))
    for length, tokenized in ((context * per_token, True), (context * per_token + 1, False)):
        for path, field in (
            ("/v1/completions", {"prompt": "x" * length}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * length}]}),
        ):
            encoded.clear()
            status, answer = await app.post(path, field)
            assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
            assert "256" in answer["error"]["message"]
            assert bool(encoded) == (tokenized and "prompt" in field)


async def test_a_prediction(app: Any) -> None:
    create, text = app.openai.chat.completions.create, "The quick brown fox"
    for content in (text, [{"type": "text", "text": "The quick"}, {"type": "text", "text": " brown fox"}]):
        prediction: Any = {"type": "content", "content": content}
        answer = await create(model="tiny", messages=HELLO, max_tokens=4, prediction=prediction)
        assert app.engine.params[-1].prediction == app.tokenizer.encode(text, False)
        details = answer.usage.completion_tokens_details
        assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)
    long: Any = {"type": "content", "content": "word " * 50_000}
    await create(model="tiny", messages=HELLO, max_tokens=1, prediction=long, extra_body={"speculative_tokens": 0})
    params = app.engine.params[-1]
    assert len(params.prediction) == app.engine.info.max_model_len and params.speculative_tokens == 0
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for wrong, message in (
        ({"prediction": {"type": "guess", "content": "x"}}, "prediction.type must be content, got 'guess'"),
        ({"prediction": {"type": "content", "content": [image]}}, "prediction.content: an answer has no images"),
        ({"prediction": {"type": "content", "content": [{"type": "text"}]}}, "prediction.content[0].text: is missing"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"speculative_tokens": -1}, "speculative_tokens must be at least 0, got -1"),
    ):
        status, answer = await app.post("/v1/chat/completions", {"messages": HELLO, **wrong})
        assert status == 400 and message in answer["error"]["message"]
