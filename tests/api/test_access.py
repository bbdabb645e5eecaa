"""Who may call and when: keys, origins, loading, a full queue."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import AsyncOpenAI, AuthenticationError, InternalServerError, RateLimitError

from sophserve.config import ServerConfig
from sophserve.errors import ConfigError
from sophserve.keys import Limits, digest_of, read_keys
from sophserve.link.messages import Progress

TEXT = "/v1/completions"


async def test_api_keys(start_app: Any) -> None:
    app = await start_app(api_key=["secret", "ключ"])
    assert (await app.openai.completions.create(model="tiny", prompt="Hi", max_tokens=1)).choices
    for headers in ({"x-api-key": "secret"}, {"Authorization": "bearer secret"}, {"Authorization": "Bearer ключ"}):
        async with app.http.get("/v1/models", headers=headers) as response:
            assert response.status == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer SECRET"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
        {"x-api-key": ""},
    ):
        for path in ("/v1/models", "/version", "/nowhere"):
            async with app.http.get(path, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                error = (await response.json())["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    async with app.http.get("/health") as response:
        assert response.status == 200
    async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="wrong") as client:
        with pytest.raises(AuthenticationError):
            await client.models.list()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"hidden").hexdigest()
    path.write_text(
        f"""
        [alice]
        key = "open"
        max_concurrent_requests = 2
        priority = -3
        [bob]
        sha256 = "{digest}"
        max_tokens_per_minute = 60
        """
    )
    return path


async def ask(app: Any, key: str, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    body = {"prompt": [70] * 10, "max_tokens": 5, **fields}
    async with app.http.post(TEXT, json=body, headers={"x-api-key": key}) as response:
        return response.status, await response.json(), dict(response.headers)


async def test_a_key_has_its_share_of_requests(
    start_app: Any, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app = await start_app(api_key=["plain"], api_key_file=str(key_file), max_concurrent_requests_per_key=1)
    app.engine.gate.clear()
    running = [asyncio.create_task(ask(app, key)) for key in ("plain", "open", "open", "hidden")]
    await app.until_running(4)
    for key, most in (("plain", 1), ("open", 2), ("hidden", 1)):
        for stream in (False, True):
            status, answer, headers = await ask(app, key, stream=stream)
            assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
            assert headers["Retry-After"] == "1" and f"has {most} requests running" in answer["error"]["message"]
    app.engine.gate.set()
    assert [status for status, _, _ in await asyncio.gather(*running)] == [200] * 4
    assert (await ask(app, "plain"))[0] == (await ask(app, "open"))[0] == 200
    assert {"key=key-1", "key=alice", "key=bob"} <= set(caplog.text.split())
    assert "hidden" not in caplog.text and "plain" not in caplog.text
    assert {priority for priority, _ in app.engine.scheduling} == {0, -3}
    assert set(app.engine.owners) == {"key-1", "alice", "bob"}


async def test_a_key_has_its_share_of_tokens(start_app: Any, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    # Not for the event loop as well, which would take every connection for an idle one.
    monkeypatch.setattr("sophserve.api.http.quota.time", SimpleNamespace(monotonic=lambda: now))
    app = await start_app(api_key_file=str(key_file))
    for _ in range(4):
        assert (await ask(app, "hidden"))[0] == 200
    for fields in ({}, {"stream": True}):
        status, answer, headers = await ask(app, "hidden", **fields)
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert headers["Retry-After"] == "1" and "bob has used its 60 tokens" in answer["error"]["message"]
    now += 1
    # One token is left: what the request takes beyond it is owed.
    assert (await ask(app, "hidden", prompt=[70] * 35))[0] == 200
    assert (await ask(app, "hidden"))[2]["Retry-After"] == "40"
    async with app.http.post("/v1/embeddings", json={"input": "Hi"}, headers={"x-api-key": "hidden"}) as response:
        assert response.status == 429
    assert (await ask(app, "open"))[0] == 200
    now += 1000
    for _ in range(4):
        assert (await ask(app, "hidden"))[0] == 200
    assert (await ask(app, "hidden"))[0] == 429


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("[a]", "must have either key or sha256"),
        ("[a]\nkey = 'x'\nsha256 = 'y'", "must have either key or sha256"),
        ("[a]\nsha256 = 'y'", "64 hex digits"),
        ("[a]\nkey = ''", "must not be empty"),
        ("[a]\nkey = 'x'\n[b]\nkey = 'x'", "the API keys a and b are the same"),
        ("[a]\nkey = 'x'\nmax_tokens_per_minute = 0", "max_tokens_per_minute of the API key a must be at least 1"),
        ("[a]\nkey = 'x'\nmax_token = 1", "unknown field `max_token`"),
        ("[a]\nkey = secret", "is not a TOML file"),
    ],
)
def test_key_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        ServerConfig(api_key_file=str(path))
    assert "secret" not in str(caught.value)


def test_the_documented_key_file(write_page: Callable[[str, Path], None], tmp_path: Path) -> None:
    write_page("docs/security.md", tmp_path)
    [key] = read_keys([], str(tmp_path / "keys.toml"), Limits(max_tokens_per_minute=1))
    assert (key.name, key.digest, key.priority) == ("alice", digest_of("sk-alice"), -1)
    assert (key.max_concurrent_requests, key.max_tokens_per_minute) == (8, 100_000)


async def test_everything_answers_503_while_loading(start_app: Any) -> None:
    app = await start_app(ready=False)
    app.engine.workers.progress = Progress("loading weights", 50, 200)
    for method, path in (
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/v1/models"),
        ("POST", TEXT),
        ("GET", "/nowhere"),
    ):
        async with app.http.request(method, path) as response:
            assert response.status == 503 and response.headers["Retry-After"] == "1"
            answer = await response.json()
            error = answer.pop("error")
            assert answer == {"status": "loading", "stage": "loading weights", "done": 50, "total": 200}
            assert "loading weights (25 %)" in error["message"]
            assert (error["type"], error["code"]) == ("server_error", "loading")
    async with app.http.get("/live") as response:
        assert response.status == 200
    await app.engine.start(app.tokenizer)
    async with app.http.get("/health") as response:
        assert response.status == 200 and await response.json() == {"status": "ok"}


async def test_a_lost_engine_is_not_healthy(app: Any) -> None:
    app.engine.died.set()
    for path in ("/health", "/ready", "/live"):
        async with app.http.get(path) as response:
            assert response.status == 503 and (await response.json())["status"] == "engine_dead"
    with pytest.raises(InternalServerError) as caught:
        await app.openai.completions.create(model="tiny", prompt="Hi")
    assert caught.value.status_code == 503


async def test_while_the_worker_restarts_requests_wait(app: Any) -> None:
    app.engine.restarting = True
    for path, status in (("/health", 503), ("/ready", 503), ("/live", 200), ("/v1/models", 200)):
        async with app.http.get(path) as response:
            assert response.status == status
            assert (await response.json()).get("status") == {503: "restarting"}.get(status, "ok") or path[1] == "v"
    assert (await app.openai.completions.create(model="tiny", prompt="Hi", max_tokens=1)).choices


async def test_a_stalled_worker_is_not_healthy(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(app.engine.workers), "heartbeat_age", 61.0)
    for path in ("/health", "/ready", "/live"):
        async with app.http.get(path) as response:
            assert response.status == 503 and (await response.json())["status"] == "stalled"


async def test_a_full_queue_answers_429(start_app: Any) -> None:
    app = await start_app(engine={"max_num_seqs": 2}, max_queued_requests=1)
    app.engine.gate.clear()
    create = app.openai.completions.create
    running = [asyncio.create_task(create(model="tiny", prompt="Hi", n=n)) for n in (2, 1)]
    await app.until_running(3)
    for stream in (False, True):
        with pytest.raises(RateLimitError) as caught:
            await create(model="tiny", prompt="Hi", stream=stream)
        assert caught.value.response.headers["Retry-After"] == "1"
        assert caught.value.code == "queue_full"
    app.engine.gate.set()
    await asyncio.gather(*running)
    assert (await create(model="tiny", prompt="Hi", n=3, max_tokens=1)).choices
    status, answer = await app.post(TEXT, {"prompt": "Hi", "n": 4})
    assert status == 400 and "at most 3" in answer["error"]["message"]


async def test_origins(start_app: Any) -> None:
    closed = await start_app()
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with closed.http.options(TEXT, headers=ask) as response:
        assert response.status == 405 and "Access-Control-Allow-Origin" not in response.headers
    app = await start_app(allowed_origins=["https://a.example"], api_key=["k"])
    async with app.http.options(TEXT, headers={**ask, "Access-Control-Request-Headers": "authorization"}) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
    headers = {"Origin": "https://a.example", "Authorization": "Bearer k"}
    for body in ({"prompt": "Hi"}, {"prompt": "Hi", "stream": True}, {"prompt": 1.5}):
        async with app.http.post(TEXT, json=body, headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
            assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]
    async with app.http.options(TEXT, headers={**ask, "Origin": "https://b.example"}) as response:
        assert response.status == 401
    async with app.http.get("/health", headers={"Origin": "https://b.example"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
    anyone = await start_app(allowed_origins=["*"])
    async with anyone.http.get("/health", headers={"Origin": "null"}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "null"


async def read_event(response: Any) -> Any:
    line = await response.content.readline()
    await response.content.readline()
    return json.loads(line.removeprefix(b"data: "))


async def test_drain_lets_requests_finish(app: Any) -> None:
    app.engine.gate.clear()
    task = asyncio.create_task(app.openai.completions.create(model="tiny", prompt="Hi", max_tokens=2))
    await app.until_running(1)
    drained = asyncio.create_task(app.serving.drain(30))
    await asyncio.sleep(0.01)
    async with app.http.get("/health") as response:
        assert response.status == 503 and response.headers["Connection"] == "close"
        assert (await response.json())["status"] == "stopping"
    status, answer = await app.post(TEXT, {"prompt": "Hi"})
    assert status == 503 and answer["error"]["code"] == "stopping"
    assert not drained.done()
    app.engine.gate.set()
    assert (await task).choices[0].finish_reason == "length"
    await asyncio.wait_for(drained, 1)


async def test_drain_ends_what_takes_too_long(app: Any) -> None:
    body = {"prompt": [70] * 40, "stream": True}
    async with app.http.post(TEXT, json=body) as response:
        await read_event(response)
        app.engine.gate.clear()
        whole = asyncio.create_task(app.post(TEXT, {"prompt": "Hi"}))
        await app.until_running(2)
        await app.serving.drain(0.05)
        events = (await response.text()).strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping"
    status, answer = await whole
    assert status == 503 and answer["error"]["code"] == "stopping"
    assert app.engine.running == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_disconnect_aborts(app: Any, stream: bool, n: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    app.engine.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", app.port)
    body = json.dumps({"prompt": "Hi", "n": n, "stream": stream}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await app.until_running(n)
    writer.close()
    await app.until_running(0)
    await asyncio.sleep(0.01)
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("sophserve")]
    assert line.startswith("POST /v1/completions 499 ")


async def test_disconnect_in_the_middle_of_a_stream_aborts(app: Any) -> None:
    async with app.http.post(TEXT, json={"prompt": [70] * 100, "stream": True, "max_tokens": 150}) as response:
        await read_event(response)
        app.engine.gate.clear()
        await app.until_running(1)
        response.close()
    await app.until_running(0)


async def test_disconnect_while_waiting_for_the_tokenizer_aborts(app: Any) -> None:
    import threading

    hold = threading.Event()
    app.serving.texts._short.submit(0, hold.wait)
    before = len(app.engine.prompts)
    task = asyncio.create_task(app.post(TEXT, {"prompt": "fox " * 10_000}))
    await asyncio.sleep(0.05)
    assert len(app.serving.texts._short._jobs) == 1
    task.cancel()
    await asyncio.sleep(0.05)
    hold.set()
    status, _ = await app.post(TEXT, {"prompt": "Hi", "max_tokens": 1})
    assert status == 200 and len(app.engine.prompts) == before + 1


async def test_health_answers_while_a_long_prompt_is_tokenized(app: Any) -> None:
    app.serving.characters_per_token = None
    task = asyncio.create_task(app.post(TEXT, {"prompt": "The quick brown fox. " * 20_000}))
    await asyncio.sleep(0.01)
    slowest = 0.0
    while not task.done():
        start = asyncio.get_running_loop().time()
        async with app.http.get("/health") as response:
            assert response.status == 200
        slowest = max(slowest, asyncio.get_running_loop().time() - start)
    assert (await task)[0] == 400
    assert slowest < 0.5


async def test_a_slow_reader_costs_others_nothing(app: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port, limit=1024)
    body = json.dumps({"prompt": [70] * 100, "stream": True, "logprobs": 20, "max_tokens": 150}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    for _ in range(20):
        status, _answer = await app.post(TEXT, {"prompt": "Hi", "max_tokens": 2})
        assert status == 200
    received = b""
    while b"[DONE]" not in received:
        received += await reader.read(65536)
    writer.close()
