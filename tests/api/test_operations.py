"""What operators ask: /ping, /server_info, /requests, and the ids of requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import APIStatusError

TEXT = "/v1/completions"


async def test_ping(start_app: Any) -> None:
    app = await start_app(ready=False, api_key=["secret"])
    for ready, status in ((False, 503), (True, 200)):
        if ready:
            await app.engine.start(app.tokenizer)
        for method in ("GET", "POST"):
            async with app.http.request(method, "/ping") as response:
                assert response.status == status
                assert not ready or await response.text() == ""


async def test_server_info(start_app: Any) -> None:
    app = await start_app(
        engine={"max_num_seqs": 7}, defaults={"top_k": 3}, api_key=["hush"], ssl_certfile="c", ssl_keyfile="whisper"
    )
    async with app.http.get("/server_info", headers={"Authorization": "Bearer hush"}) as response:
        assert response.status == 200
        text, info = await response.text(), await response.json()
    assert "hush" not in text and "whisper" not in text
    assert info["server_config"]["api_key"] is True
    assert info["engine_config"]["max_num_seqs"] == 7
    assert info["model"]["names"] == ["tiny", "org/tiny"] and info["model"]["max_model_len"] == 256
    assert info["memory"]["kv_cache_tokens"] == 16_000
    assert info["sampling_defaults"] == {"top_k": 3}
    assert info["uptime"] >= 0 and info["version"][0].isdigit()


async def live(app: Any) -> list[dict[str, Any]]:
    async with app.http.get("/requests") as response:
        assert response.status == 200
        return (await response.json())["requests"]


async def test_live_requests(app: Any) -> None:
    assert await live(app) == []
    app.engine.gate.clear()
    body = {"prompt": [70] * 5, "n": 2, "max_tokens": 9}
    task = asyncio.create_task(app.post(TEXT, body, headers={"X-Request-Id": "mine"}))
    await app.until_running(2)
    first, second = await live(app)
    assert 0 <= first.pop("age") < 5
    assert first == {
        "id": "mine",
        "index": 0,
        "state": "running",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "computed_tokens": 0,
        "generated_tokens": 0,
        "max_tokens": 9,
    }
    assert (second["id"], second["index"]) == ("mine", 1)
    app.engine.gate.set()
    assert (await task)[0] == 200
    assert await live(app) == []


@pytest.mark.parametrize(("method", "path"), [("POST", "/requests/a.b:c/cancel"), ("DELETE", "/requests/a.b:c")])
async def test_cancel(app: Any, method: str, path: str) -> None:
    app.engine.gate.clear()
    create = app.openai.completions.create
    cancelled = asyncio.create_task(
        create(model="tiny", prompt="Hi", n=2, extra_headers={"X-Request-Id": "a.b:c"}), name="cancelled"
    )
    other = asyncio.create_task(create(model="tiny", prompt="Hi"))
    await app.until_running(3)
    async with app.http.request(method, path) as response:
        assert response.status == 200
        assert await response.json() == {"id": "a.b:c", "cancelled": 2}
    app.engine.gate.set()
    with pytest.raises(APIStatusError) as caught:
        await cancelled
    assert (caught.value.status_code, caught.value.code) == (499, "cancelled")
    assert (await other).choices
    async with app.http.request(method, path) as response:
        assert response.status == 404
        assert "GET /requests" in (await response.json())["error"]["message"]


async def test_request_ids(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    body = {"prompt": "Hi", "max_tokens": 1}
    for path, fields in ((TEXT, body), (TEXT, {**body, "stream": True}), (TEXT, {"prompt": 1}), ("/nowhere", {})):
        caplog.clear()
        async with app.http.post(path, json=fields, headers={"X-Request-Id": "trace-1"}) as response:
            assert response.headers["X-Request-Id"] == "trace-1"
            assert path != TEXT or response.status == 400 or '"id":"trace-1"' in await response.text()
        assert " trace-1" in caplog.text
    async with app.http.post(TEXT, json={**body, "request_id": "from-body"}) as response:
        assert response.headers["X-Request-Id"] == (await response.json())["id"] == "from-body"
    for given in ("", "two words", "x" * 129, "-x", "å"):
        async with app.http.post(TEXT, json=body, headers={"X-Request-Id": given}) as response:
            assert response.headers["X-Request-Id"].startswith("cmpl-")
    async with app.http.get("/v1/models") as response:
        assert response.headers["X-Request-Id"].startswith("req-")
    status, answer = await app.post(TEXT, {**body, "request_id": "two words"})
    assert status == 400 and answer["error"]["param"] == "request_id"
