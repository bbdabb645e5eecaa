"""/tokenize, /detokenize and /apply-template."""

from __future__ import annotations

from typing import Any

import pytest

HELLO = [{"role": "user", "content": "The quick 🙂 fox"}]


async def test_text(app: Any) -> None:
    ids = app.tokenizer.encode("The quick 🙂 fox")
    status, answer = await app.post("/tokenize", {"model": "tiny", "prompt": "The quick 🙂 fox"})
    assert status == 200
    assert answer == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
    assert (await app.post("/tokenize", {"content": "The quick 🙂 fox"}))[1]["tokens"] == ids
    _, answer = await app.post("/tokenize", {"prompt": " quick", "return_token_strs": True})
    assert "".join(answer["token_strs"]) == "Ġquick"
    for name in ("prompt", "content"):
        status, answer = await app.post("/tokenize", {name: ""})
        assert (status, answer["count"], answer["tokens"]) == (200, 0, [])


async def test_texts_longer_than_the_context_are_counted(app: Any) -> None:
    status, answer = await app.post("/tokenize", {"prompt": "fox " * 5000})
    assert status == 200 and answer["count"] > 4000


async def test_special_tokens(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    encode = app.tokenizer.encode
    monkeypatch.setattr(app.tokenizer, "encode", lambda text, special: asked.append(special) or encode(text, special))
    for body in (
        {"prompt": "a"},
        {"prompt": "a", "add_special_tokens": False},
        {"messages": HELLO},
        {"messages": HELLO, "add_special_tokens": True},
        {"content": "a"},
        {"content": "a", "add_special": True},
    ):
        assert (await app.post("/tokenize", body))[0] == 200
    assert asked == [True, False, False, True, False, True]


async def test_conversations_are_what_the_engine_gets(app: Any) -> None:
    continued = [*HELLO, {"role": "assistant", "content": "jumps"}]
    for fields in (
        {"messages": HELLO},
        {"messages": HELLO, "add_generation_prompt": False},
        {"messages": continued, "continue_final_message": True},
    ):
        assert (await app.post("/v1/chat/completions", {**fields, "max_tokens": 1}))[0] == 200
        _, answer = await app.post("/tokenize", fields)
        assert answer["tokens"] == app.engine.prompts[-1]
        status, rendered = await app.post("/apply-template", fields)
        assert status == 200 and app.tokenizer.encode(rendered["prompt"], False) == answer["tokens"]


async def test_detokenize(app: Any) -> None:
    ids = app.tokenizer.encode("<|im_start|>The quick 🙂 fox")
    status, answer = await app.post("/detokenize", {"tokens": ids})
    assert status == 200
    assert answer == {"prompt": "<|im_start|>The quick 🙂 fox", "content": "<|im_start|>The quick 🙂 fox"}
    assert (await app.post("/detokenize", {"tokens": []}))[1]["prompt"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/tokenize", {}, "prompt", "one of prompt, messages and content"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "one of"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "str"),
        ("/tokenize", {"messages": []}, "messages", "empty"),
        ("/tokenize", {"messages": HELLO, "add_generation_prompt": True, "continue_final_message": True}, None, "excl"),
        ("/detokenize", {}, "tokens", "missing"),
        ("/detokenize", {"tokens": [512]}, "tokens", "511"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "511"),
        ("/detokenize", {"tokens": "a"}, "tokens", "array"),
        ("/apply-template", {}, "messages", "empty"),
        ("/apply-template", {"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ],
)
async def test_wrong_bodies(app: Any, path: str, body: dict[str, Any], param: str | None, words: str) -> None:
    status, answer = await app.post(path, body)
    assert status == 400
    assert words in answer["error"]["message"]
    assert param is None or answer["error"]["param"] == param


async def test_unknown_models(app: Any) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]}), ("/apply-template", {})):
        status, answer = await app.post(path, {**body, "model": "other"})
        assert status == 404 and answer["error"]["code"] == "model_not_found"
