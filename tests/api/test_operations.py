"""What operators ask: /ping, /server_info, /requests, and the ids of requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from openai import APIStatusError
from prometheus_client import CollectorRegistry

from sophserve.errors import RequestAborted
from sophserve.link.messages import EncoderInfo
from sophserve.logs import JsonFormatter

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
        engine={"max_num_seqs": 7, "limit_mm_per_prompt": {"image": 3}},
        defaults={"top_k": 3},
        max_image_bytes="1000",
        api_key=["hush"],
        ssl_certfile="c",
        ssl_keyfile="whisper",
    )
    async with app.http.get("/server_info", headers={"Authorization": "Bearer hush"}) as response:
        assert response.status == 200
        text, info = await response.text(), await response.json()
    assert "hush" not in text and "whisper" not in text
    assert info["server_config"]["api_key"] is True
    assert info["engine_config"]["max_num_seqs"] == 7
    assert info["model"]["names"] == ["tiny", "org/tiny"] and info["model"]["max_model_len"] == 256
    assert info["memory"]["kv_cache_tokens"] == 16_000
    assert info["limits"] == {"request_bytes": 32 * 2**20, "images": 3, "image_bytes": 1000}
    assert info["sampling_defaults"] == {"top_k": 3}
    assert info["uptime"] >= 0 and info["version"][0].isdigit()


async def test_what_a_model_reads(app: Any) -> None:
    """In the form of OpenRouter's list and llama.cpp's (ggml-org/llama.cpp#22709)."""
    for encoder, modalities in ((None, ["text"]), (EncoderInfo(1, 1.0, 4096), ["text", "image"])):
        app.engine._info = msgspec.structs.replace(app.engine.info, encoder=encoder)
        async with app.http.get("/v1/models") as response:
            models = (await response.json())["data"]
        assert [each["architecture"] for each in models] == [{"input_modalities": modalities}] * 2
        async with app.http.get("/v1/models/tiny") as response:
            assert await response.json() == models[0]
    app.engine.config.limit_mm_per_prompt = {"image": 0}
    async with app.http.get("/v1/models/tiny") as response:
        assert (await response.json())["architecture"] == {"input_modalities": ["text"]}


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
        "accepted_tokens": 0,
        "rejected_tokens": 0,
        "max_tokens": 9,
        "unsent_bytes": 0,
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


async def test_root_path(start_app: Any) -> None:
    app = await start_app(root_path="/llm/a", api_key=["secret"])
    headers = {"x-api-key": "secret"}
    for root in ("", "/llm/a"):
        async with app.http.get(f"{root}/health") as response:
            assert response.status == 200
        async with app.http.head(f"{root}/v1/models", headers=headers) as response:
            assert response.status == 200
        async with app.http.get(f"{root}/v1/models") as response:
            assert response.status == 401
        async with app.http.post(f"{root}{TEXT}", json={"prompt": "Hi", "max_tokens": 1}, headers=headers) as response:
            assert response.status == 200
        async with app.http.post(f"{root}/v1/messages", json={}, headers=headers) as response:
            assert response.status == 400 and (await response.json())["type"] == "error"
    for path in ("/llm/v1/models", "/llm/a/llm/a/health", "/llm/ahealth"):
        async with app.http.get(path, headers=headers) as response:
            assert response.status == 404
        async with app.http.get(path) as response:
            assert response.status == 401


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    formatter = JsonFormatter("server")
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name.startswith("sophserve")]


async def test_json_log(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    body = {"prompt": [70] * 4, "max_tokens": 3, "n": 2}
    await app.post(TEXT, body, headers={"X-Request-Id": "mine"})
    await app.post(TEXT, {"prompt": 1})
    app.engine.failure = ZeroDivisionError("internal detail")
    await app.post(TEXT, body)
    good, bad, trace, failed = logged(caplog)
    times = {name: good.pop(name) for name in ("time", "total", "queue", "first_token", "decode")}
    assert times["queue"] == 0 < times["first_token"] < times["total"]
    assert good.pop("message").startswith("POST /v1/completions 200 mine total=")
    assert good == {
        **{"level": "INFO", "process": "server", "logger": "sophserve.api.http.error_middleware"},
        **{"method": "POST", "path": TEXT, "status": 200, "id": "mine", "error": None, "code": None},
        **{"prompt": 4, "cached": 0, "output": 6, "finish": "length"},
    }
    assert bad["status"] == 400 and bad["error"].startswith("prompt: must be") and bad["id"].startswith("req-")
    assert trace["level"] == "ERROR" and "ZeroDivisionError" in trace["traceback"]
    assert (failed["status"], failed["code"]) == (500, "internal_error")


@pytest.mark.parametrize("log_requests", [False, True])
async def test_prompts_are_logged_only_if_asked_for(
    start_app: Any, caplog: pytest.LogCaptureFixture, log_requests: bool
) -> None:
    caplog.set_level("DEBUG")
    app = await start_app(log_requests=log_requests)
    await app.post(TEXT, {"prompt": "brown fox", "max_tokens": 1, "temperature": 0.5})
    await app.post("/v1/embeddings", {"input": "lazy dog"})
    assert ("brown fox" in caplog.text) == ("lazy dog" in caplog.text) == log_requests
    if log_requests:
        asked = [line for line in logged(caplog) if "prompt" in line and "params" in line]
        assert [line["prompt"] for line in asked] == ["brown fox", "lazy dog"]
        assert asked[0]["params"]["temperature"] == 0.5


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("path", [TEXT, "/v1/messages"])
async def test_a_silent_stream_is_kept_alive(start_app: Any, path: str) -> None:
    app = await start_app(sse_keep_alive_interval=0.02)
    app.engine.gate.clear()
    body = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
    async with app.http.post(path, json=body) as response:
        for _ in range(3):
            assert await response.content.readline() == b": keep-alive\n"
            assert await response.content.readline() == b"\n"
        app.engine.gate.set()
        events = [part for part in (await response.text()).split("\n\n") if not part.startswith(":")]
        assert response.status == 200 and response.headers["Content-Type"].startswith("text/event-stream")
    assert all("data: " in event for event in events[:-1]) and events[-1] == ""
    assert app.engine.running == 0


async def test_what_fails_after_a_comment_is_an_event(start_app: Any) -> None:
    app = await start_app(sse_keep_alive_interval=0.02)
    app.engine.gate.clear()
    async with app.http.post(TEXT, json={"prompt": "Hi", "stream": True}) as response:
        assert await response.content.readline() == b": keep-alive\n"
        app.engine.failure = RequestAborted("cancelled by a test", "cancelled")
        app.engine.gate.set()
        *_, event, end = (await response.text()).split("\n\n")
    assert json.loads(event.strip().removeprefix("data: "))["error"]["code"] == "cancelled" and end == ""


async def test_no_comment_comes_before_a_refusal(start_app: Any) -> None:
    app = await start_app(sse_keep_alive_interval=0.02, engine={"max_queue_time": 100.0})
    app.engine.gate.clear()
    for started, status in ((False, 503), (True, 200)):
        task = asyncio.create_task(app.http.post(TEXT, json={"prompt": "Hi", "stream": True}))
        await app.until_running(1)
        [sequence] = app.engine.sequences
        sequence.timeline.scheduled = float(started)
        if started:
            await until(task.done)
        else:
            await asyncio.sleep(0.1)  # many intervals
        app.engine.failure = RequestAborted("waited for too long", "queue_timeout")
        app.engine.gate.set()
        async with await task as response:
            assert response.status == status and "queue_timeout" in await response.text()
        app.engine.failure = None
        app.engine.gate.clear()


async def test_a_client_that_leaves_while_nothing_comes(start_app: Any) -> None:
    app = await start_app(sse_keep_alive_interval=0.02)
    app.engine.gate.clear()
    async with app.http.post(TEXT, json={"prompt": "Hi", "stream": True}) as response:
        assert await response.content.readline() == b": keep-alive\n"
        response.close()
    await app.until_running(0)


async def test_what_is_asked_for_every_few_seconds_is_left_out_of_the_log(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app.engine.metrics = SimpleNamespace(registry=CollectorRegistry())
    caplog.set_level("INFO")
    for path in ("/health", "/ready", "/live", "/ping", "/version", "/metrics"):
        async with app.http.get(path) as response:
            assert response.status == 200, path
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("sophserve")]
    assert [line.split()[:3] for line in lines] == [["GET", "/version", "200"]]
