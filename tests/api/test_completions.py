"""/v1/completions, as the official client sees it."""

from __future__ import annotations

from typing import Any

import pytest


def texts(chunks: list[Any], index: int) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_whole_answer(app: Any) -> None:
    answer = await app.openai.completions.create(model="tiny", prompt="The quick brown fox", max_tokens=4)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    [choice] = answer.choices
    assert choice.text == app.tokenizer.decode(app.engine.prompts[0][:4])
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(app.engine.prompts[0]), 4)


async def test_forms_of_prompts(app: Any) -> None:
    create = app.openai.completions.create
    one, two = app.tokenizer.encode("one fish"), app.tokenizer.encode("two fish")
    for prompt, expected in (
        ("one fish", [one]),
        (["one fish", "two fish"], [one, two]),
        (one, [one]),
        ([one, two], [one, two]),
    ):
        app.engine.prompts.clear()
        answer = await create(model="tiny", prompt=prompt, n=2)
        assert app.engine.prompts == [ids for ids in expected for _ in range(2)]
        assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
        assert answer.choices[0].text == app.tokenizer.decode(expected[0] * 2)
        assert answer.choices[-2].text == app.tokenizer.decode(expected[-1] * 2)
        assert answer.usage.prompt_tokens == sum(map(len, expected))


async def test_special_tokens_of_the_prompt(app: Any) -> None:
    await app.post("/v1/completions", {"prompt": "<|im_end|>x", "max_tokens": 1})
    assert app.engine.prompts[0][0] == 2


async def test_default_length_is_16_or_what_fits(app: Any) -> None:
    status, answer = await app.post("/v1/completions", {"prompt": list(range(3, 40))})
    assert status == 200 and answer["usage"]["completion_tokens"] == 16
    status, answer = await app.post("/v1/completions", {"prompt": [5] * 250})
    assert status == 200 and answer["usage"]["completion_tokens"] == 6
    status, answer = await app.post("/v1/completions", {"prompt": [5] * 250, "max_tokens": 7})
    assert status == 400
    assert "250" in answer["error"]["message"] and "256" in answer["error"]["message"]
    assert (answer["error"]["param"], answer["error"]["code"]) == ("max_tokens", "context_length_exceeded")
    assert (await app.post("/v1/completions", {"prompt": [5] * 250, "max_tokens": 6}))[0] == 200


async def test_stream_equals_the_whole(app: Any) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "prompt": ["The quick 🙂 fox", [7, 8, 9]],
        "n": 2,
        "logprobs": 2,
        "echo": True,
        "max_tokens": 30,
    }
    whole = await app.openai.completions.create(**request)
    chunks = [chunk async for chunk in await app.openai.completions.create(**request, stream=True)]
    for expected in whole.choices:
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == expected.index]
        assert texts(chunks, expected.index) == expected.text
        assert own[-1].finish_reason == expected.finish_reason == "stop"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            streamed = [x for choice in own if choice.logprobs for x in getattr(choice.logprobs, name)]
            assert streamed == getattr(expected.logprobs, name)


async def test_echo_with_logprobs(app: Any) -> None:
    prompt = "Naïve 🙂 fox"
    answer = await app.openai.completions.create(model="tiny", prompt=prompt, logprobs=1, echo=True, max_tokens=3)
    ids = app.engine.prompts[0]
    [choice] = answer.choices
    assert choice.text == prompt + app.tokenizer.decode(ids[:3])
    logprobs = choice.logprobs
    everything = ids + ids[:3]
    assert logprobs.tokens == [app.tokenizer.token_text(token) for token in everything]
    expected = [None] + [pytest.approx(-0.25 - token / 1024) for token in everything[1:]]
    assert logprobs.token_logprobs == expected
    assert logprobs.top_logprobs[0] is None
    assert all(len(top) == 2 and -0.5 in top.values() for top in logprobs.top_logprobs[1:])
    # An offset is where the token begins in the text, also after characters made of several tokens.
    whole = prompt.encode() + app.tokenizer.decode(ids[:3]).encode()
    start = 0
    for token, offset in zip(everything, logprobs.text_offset, strict=True):
        assert offset == len(whole[:start].decode(errors="ignore"))
        start += len(app.tokenizer.token_bytes(token))


async def test_echo_of_token_ids_and_without_logprobs(app: Any) -> None:
    answer = await app.openai.completions.create(model="tiny", prompt=[70, 71, 72], echo=True, max_tokens=2)
    assert answer.choices[0].text == app.tokenizer.decode([70, 71, 72, 70, 71])
    assert app.engine.params[0].prompt_logprobs is None


async def test_logprobs_zero_shows_the_chosen_token_alone(app: Any) -> None:
    answer = await app.openai.completions.create(model="tiny", prompt=[70, 71], logprobs=0, max_tokens=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == [app.tokenizer.token_text(70), app.tokenizer.token_text(71)]
    assert [list(top) for top in logprobs.top_logprobs] == [[token] for token in logprobs.tokens]


async def test_prompt_logprobs_beside_echo(app: Any) -> None:
    body = {"prompt": [70, 71, 72], "max_tokens": 1, "prompt_logprobs": 1, "echo": True, "logprobs": 4}
    _, answer = await app.post("/v1/completions", body)
    choice = answer["choices"][0]
    assert choice["prompt_logprobs"][0] is None
    assert [list(entries) for entries in choice["prompt_logprobs"][1:]] == [["71", "11"], ["72", "11"]]
    assert choice["prompt_logprobs"][1]["11"] == {
        "logprob": -0.5,
        "rank": 1,
        "decoded_token": app.tokenizer.token_text(11),
    }
    assert len(choice["logprobs"]["top_logprobs"][1]) == 5


async def test_an_impossible_token_has_a_finite_logprob(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sophserve.link.messages import TokenLogprob

    module = __import__(type(app.engine).__module__, fromlist=["logprobs"])
    monkeypatch.setattr(module, "logprobs", lambda token, count: [TokenLogprob(token, float("-inf"), 512)])
    answer = await app.openai.completions.create(model="tiny", prompt=[70], logprobs=0, max_tokens=1)
    assert answer.choices[0].logprobs.token_logprobs == [-9999.0]


async def test_usage_of_several_prompts(app: Any) -> None:
    stream = await app.openai.completions.create(
        model="tiny", prompt=[[70] * 5, [71] * 6], n=2, stream=True, stream_options={"include_usage": True}
    )
    last = [chunk async for chunk in stream][-1]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (11, 4 * 16 - 2 * 5 - 2 * 3)


async def test_echo_without_an_answer(app: Any) -> None:
    """Scoring clients send this (vLLM: echo_without_generation); OpenAI's least max_tokens is 0."""
    create, prompt = app.openai.completions.create, "Naïve 🙂 fox"
    request: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 0, "logprobs": 1}
    answer = await create(**request, echo=True)
    ids, [choice] = app.engine.prompts[0], answer.choices
    assert (choice.text, choice.finish_reason) == (prompt, "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
    assert choice.logprobs.tokens == [app.tokenizer.token_text(token) for token in ids]
    assert choice.logprobs.token_logprobs == [None, *(pytest.approx(-0.25 - token / 1024) for token in ids[1:])]
    assert len(choice.logprobs.top_logprobs) == len(choice.logprobs.text_offset) == len(ids)
    chunks = [chunk async for chunk in await create(**request, echo=True, stream=True)]
    assert texts(chunks, 0) == prompt and chunks[-1].choices[0].finish_reason == "length"
    streamed = [each for chunk in chunks if (rows := chunk.choices[0].logprobs) for each in rows.token_logprobs]
    assert streamed == choice.logprobs.token_logprobs
    [choice] = (await create(**request)).choices
    assert (choice.text, choice.finish_reason, choice.logprobs.tokens) == ("", "length", [])
    answer = await create(**request, n=2, extra_body={"best_of": 3})
    assert [choice.text for choice in answer.choices] == ["", ""]


async def test_an_answer_of_no_tokens_leaves_the_context_to_the_prompt(app: Any) -> None:
    for length, most, status in ((256, 0, 200), (257, 0, 400), (256, 1, 400), (255, 1, 200)):
        found, answer = await app.post("/v1/completions", {"prompt": [70] * length, "max_tokens": most})
        assert found == status, answer
    body = {"prompt": [70] * 300, "max_tokens": 0, "truncate_prompt_tokens": -1, "echo": True}
    status, answer = await app.post("/v1/completions", body)
    assert status == 200 and answer["usage"]["prompt_tokens"] == 256
