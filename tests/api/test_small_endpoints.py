"""What clients look for beside the answers: names of the model, paths that are not served, the tokenizer's settings,
and a chunk for each token."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from anthropic import AsyncAnthropic, NotFoundError
from jsonschema import Draft202012Validator

HEADERS = {"anthropic-version": "2023-06-01"}


async def test_models_in_the_form_of_anthropic(start_app: Any) -> None:
    names = [f"model-{number}" for number in range(7)]
    app = await start_app(served_model_name=names)
    async with AsyncAnthropic(base_url=app.url, api_key="none", max_retries=0) as client:
        models = [model async for model in await client.models.list(limit=3)]  # pages
        assert [model.id for model in models] == names
        for model in models:
            assert (model.type, model.display_name, model.lifecycle) == ("model", model.id, "active")
            assert abs((datetime.now(UTC) - model.created_at).total_seconds()) < 600
            assert model.max_input_tokens == 256
        page = await client.models.list(limit=3, before_id="model-5")
        assert [model.id for model in page.data] == ["model-2", "model-3", "model-4"] and page.has_more
        assert (page.first_id, page.last_id) == ("model-2", "model-4")
        assert (await client.models.retrieve("model-3")).display_name == "model-3"
        with pytest.raises(NotFoundError) as caught:
            await client.models.retrieve("claude")
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    async with app.http.get("/v1/models", params={"limit": "x"}, headers=HEADERS) as response:
        assert response.status == 400 and "limit must be between 1 and 1000" in await response.text()
    # Others have OpenAI's form.
    async with app.http.get("/v1/models") as response:
        assert (await response.json())["object"] == "list"
    assert (await app.openai.models.retrieve("model-3")).object == "model"


async def test_both_forms_are_as_described(app: Any) -> None:
    async with app.http.get("/openapi.json") as response:
        found = await response.json()
    for path, shown in (("/v1/models", "/v1/models"), ("/v1/models/{name}", "/v1/models/tiny")):
        schema = found["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": found["components"]})
        for headers in ({}, HEADERS):
            async with app.http.get(shown, headers=headers) as response:
                assert not list(validator.iter_errors(await response.json()))


@pytest.mark.parametrize("root", ["", "/llm"])
async def test_words_below_a_path_are_not_taken_for_names(start_app: Any, root: str) -> None:
    app = await start_app(root_path=root)
    for path in ("/v1/responses/compact", "/v1/models/load", "/requests/pause"):
        status, answer = await app.post(root + path, {})
        assert status == 404 and f"POST {root}{path} is not served" in answer["error"]["message"]
    async with app.http.get(f"{root}/v1/responses/resp_1") as response:
        assert response.status == 404 and "there is no response 'resp_1'" in await response.text()


async def test_the_tokenizer_shows_itself_if_it_may(start_app: Any) -> None:
    app = await start_app()
    async with app.http.get("/tokenizer_info") as response:
        assert response.status == 404 and "--enable-tokenizer-info-endpoint" in await response.text()
    app = await start_app(enable_tokenizer_info_endpoint=True)
    async with app.http.get("/tokenizer_info") as response:
        info = await response.json()
    assert info["chat_template"] == app.serving.chat_template.source() != ""
    assert info["eos_token"] == app.tokenizer.eos_token
    assert isinstance(info["tokenizer_class"], str)
    # As lm_eval goes on from there.
    status, answer = await app.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})
    assert status == 200 and answer["tokens"] == [app.tokenizer.eos_id]


async def test_a_chunk_for_each_token(app: Any) -> None:
    # Letters that take several tokens have their text with the last one, and special tokens have none.
    app.engine.text = "K<|im_start|>öln 😀 ok😀"
    count = len(app.tokenizer.encode(app.engine.text, False))
    for n in (1, 2):
        common = {"max_tokens": count, "stream": True, "ignore_eos": True, "n": n}
        for path, body in (
            ("/v1/completions", {"prompt": "Hi"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ):
            chunks = await _chunks(app, path, common | body)
            for index in range(n):
                mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
                parts = [each for each in mine if not each["finish_reason"] and "role" not in each.get("delta", {})]
                texts = [part.get("text", part.get("delta", {}).get("content")) for part in parts]
                assert len(texts) == count and texts.count("") >= 3 and "".join(texts) == "Köln 😀 ok😀"
            # Without ignore_eos tokens without text send nothing.
            chunks = await _chunks(app, path, common | body | {"ignore_eos": False})
            shown = [choice for chunk in chunks for choice in chunk["choices"] if not choice["finish_reason"]]
            assert all(
                each.get("text") or each.get("delta", {}).get("content") or "role" in each["delta"] for each in shown
            )


async def _chunks(app: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:

    async with app.http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
