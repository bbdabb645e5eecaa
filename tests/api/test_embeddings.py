"""/v1/embeddings, as the official client sees it."""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from typing import Any

import pytest

PATH = "/v1/embeddings"


def unit(*values: float) -> Any:
    length = math.hypot(*values)
    return pytest.approx([value / length for value in values], rel=1e-6)


async def test_forms_of_inputs(app: Any) -> None:
    one, two = app.tokenizer.encode("one fish"), app.tokenizer.encode("two fish")
    for given, expected in (
        ("one fish", [one]),
        (["one fish", "two fish"], [one, two]),
        (one, [one]),
        ([one, two], [one, two]),
    ):
        app.engine.prompts.clear()
        answer = await app.openai.embeddings.create(model="tiny", input=given)
        assert app.engine.prompts == expected
        assert (answer.object, answer.model) == ("list", "tiny")
        assert [entry.index for entry in answer.data] == list(range(len(expected)))
        for entry, tokens in zip(answer.data, expected, strict=True):
            assert entry.embedding == unit(sum(tokens), -len(tokens), entry.index, 3)
        used = sum(map(len, expected))
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (used, used)


async def test_encodings_and_dimensions(app: Any) -> None:
    body = {"input": [5, 7]}
    _, plain = await app.post(PATH, body)
    assert plain["data"][0]["embedding"] == unit(12, -2, 0, 3)
    _, coded = await app.post(PATH, {**body, "encoding_format": "base64"})
    values = array("f", base64.b64decode(coded["data"][0]["embedding"]))
    assert list(values) == plain["data"][0]["embedding"]
    _, short = await app.post(PATH, {**body, "dimensions": 2})
    assert short["data"][0]["embedding"] == unit(12, -2)


async def test_pooling_and_truncation(start_app: Any) -> None:
    app = await start_app()
    app.serving.pooling = "mean"
    status, _ = await app.post(PATH, {"input": [5] * 256, "priority": 3})
    assert status == 200 and app.engine.scheduling == [(3, "mean")]
    for fields, expected in (
        ({"truncate_prompt_tokens": 2}, [298, 299]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [0, 1]),
        ({"truncate_prompt_tokens": -1}, list(range(44, 300))),
    ):
        assert (await app.post(PATH, {"input": list(range(300)), **fields}))[0] == 200
        assert app.engine.prompts[-1] == expected
    assert (await app.post(PATH, {"input": "fox " * 5000, "truncate_prompt_tokens": -1}))[0] == 200


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": [1, "a"]}, "input", "mixes"),
        ({"input": None}, "input", "str"),
        ({"input": [512]}, "input", "511"),
        ({"input": [5] * 257}, "input", "256"),
        ({"encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"dimensions": 5}, "dimensions", "at most 4"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ],
)
async def test_wrong_fields(app: Any, fields: dict[str, Any], param: str, words: str) -> None:
    status, answer = await app.post(PATH, {"input": "Hi"} | fields)
    assert status == 400, answer
    assert answer["error"]["param"] == param and words in answer["error"]["message"]


async def test_disconnect_and_failure(app: Any) -> None:
    app.engine.gate.clear()
    task = asyncio.create_task(app.post(PATH, {"input": ["a", "b"]}))
    await app.until_running(2)
    task.cancel()
    await app.until_running(0)
    app.engine.gate.set()
    app.engine.failure = ZeroDivisionError("internal")
    assert (await app.post(PATH, {"input": ["a", "b"]}))[0] == 500
