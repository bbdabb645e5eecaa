"""/v1/batches over an engine without a model: what becomes of lines, whatever happens to them and their server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError

from sophserve.api.batches import job as job_module
from sophserve.api.batches import runner as runner_module
from sophserve.api.batches.runner import RUNNER
from sophserve.api.batches.store import BATCH_STORE
from sophserve.api.generation.places import Places
from tests.api.images import digest_of, let_see, picture

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
ENDED = ("completed", "failed", "expired", "cancelled")

# OpenAI's RequestOutput, which its openapi.json names without a schema.
OUTPUT = {
    "type": "object",
    "required": ["id", "custom_id", "response", "error"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": "^batch_req_"},
        "custom_id": {"type": ["string", "null"]},
        "response": {
            "type": ["object", "null"],
            "required": ["status_code", "request_id", "body"],
            "properties": {
                "status_code": {"type": "integer"},
                "request_id": {"type": "string"},
                "body": {"type": "object"},
            },
        },
        "error": {
            "type": ["object", "null"],
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def check_schema(name: str, answer: Any) -> None:
    """Where OpenAI's openapi.json is at hand."""
    if (schemas := openai_schemas()) is not None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        assert [error.message for error in Draft202012Validator(schema).iter_errors(answer)] == []


@cache
def openai_schemas() -> dict[str, Any] | None:
    path = Path(os.environ.get("OPENAI_SCHEMA", "../shared/data/openai-openapi/openapi.json"))
    if not path.exists():
        return None
    found = json.loads(path.read_bytes())["components"]["schemas"]
    return {name: each for name, each in found.items() if re.match("Batch|.*File|List|Metadata", name)}


def line(custom_id: str, body: dict[str, Any], url: str = TEXT) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def texts(count: int) -> bytes:
    return b"".join(line(f"request-{n}", {"prompt": f"Text {n}", "max_tokens": 3}) for n in range(count))


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[None]:
    """Batches run within this context, as a server runs them that has loaded its model."""
    task = asyncio.create_task(app.runner.app[RUNNER].run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_FOLDER_PERIOD", 0.05)
    monkeypatch.setattr(runner_module, "_BATCH_PERIOD", 0.02)
    monkeypatch.setattr(runner_module, "_RETRY_PERIOD", 0.1)


@pytest.fixture
async def app(start_app: Any, tmp_path: Path) -> AsyncIterator[Any]:
    app = await start_app(batch_dir=str(tmp_path / "kept"))
    async with running(app):
        yield app


async def begin(client: AsyncOpenAI, content: bytes, endpoint: str = TEXT, **options: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    options = {"completion_window": "24h", **options}
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, **options)


async def until(client: AsyncOpenAI, identity: str, *statuses: str) -> Any:
    async with asyncio.timeout(20):
        while (batch := await client.batches.retrieve(identity)).status not in (statuses or ENDED):
            await asyncio.sleep(0.01)
    return batch


async def outputs(client: AsyncOpenAI, batch: Any) -> tuple[list[Any], list[Any]]:
    """What is in the two files of a batch."""
    found: list[list[Any]] = []
    for identity in (batch.output_file_id, batch.error_file_id):
        content = (await client.files.content(identity)).text if identity else ""
        found.append([json.loads(each) for each in content.splitlines()])
        for each in found[-1]:
            Draft202012Validator(OUTPUT).validate(each)
    return found[0], found[1]


async def test_the_official_client_drives_a_batch(app: Any) -> None:
    expires = {"anchor": "created_at", "seconds": 7200}
    made = await begin(app.openai, texts(20), metadata={"who": "me"}, output_expires_after=expires)
    assert (made.object, made.status, made.endpoint, made.model) == ("batch", "validating", TEXT, "tiny")
    assert made.expires_at == made.created_at + 86400 and made.metadata == {"who": "me"}
    batch = await until(app.openai, made.id)
    assert batch.status == "completed" and batch.errors is None and batch.error_file_id is None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (20, 20, 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    good, bad = await outputs(app.openai, batch)
    assert {each["custom_id"] for each in good} == {f"request-{n}" for n in range(20)} and len(good) == 20 and not bad
    assert len({each["id"] for each in good}) == len({each["response"]["request_id"] for each in good}) == 20
    used = [each["response"]["body"]["usage"] for each in good]
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in used) == 60
    assert batch.usage.input_tokens == sum(each["prompt_tokens"] for each in used)
    assert batch.usage.total_tokens == batch.usage.input_tokens + 60
    file = await app.openai.files.retrieve(batch.output_file_id)
    assert file.purpose == "batch_output" and file.expires_at == file.created_at + 7200
    assert file.filename == f"{batch.id}_output.jsonl"
    second = await begin(app.openai, texts(1))
    assert [each.id async for each in app.openai.batches.list(limit=1)] == [second.id, batch.id]
    await until(app.openai, second.id)
    assert all(app.engine.background) and len(app.engine.background) == 21
    kept = app.runner.app[BATCH_STORE]
    async with asyncio.timeout(5):
        while kept.work(second.id).exists():
            await asyncio.sleep(0.01)
    assert sorted(path.name for path in kept.batches.folder.iterdir()) == [f"{batch.id}.json", f"{second.id}.json"]


async def test_answers_fit_openais_schema(app: Any) -> None:
    async def got(method: str, path: str, **options: Any) -> Any:
        async with app.http.request(method, path, **options) as response:
            return await response.json()

    check_schema("ListFilesResponse", await got("GET", "/v1/files"))
    check_schema("ListBatchesResponse", await got("GET", "/v1/batches"))
    file = await app.openai.files.create(file=("in.jsonl", texts(2) + b"{\n"), purpose="batch")
    check_schema("OpenAIFile", await got("GET", f"/v1/files/{file.id}"))
    body = {"input_file_id": file.id, "endpoint": TEXT, "completion_window": "24h"}
    made = await got("POST", "/v1/batches", json=body)
    check_schema("Batch", made)
    await until(app.openai, made["id"])
    check_schema("Batch", await got("GET", f"/v1/batches/{made['id']}"))
    check_schema("ListBatchesResponse", await got("GET", "/v1/batches"))
    check_schema("ListFilesResponse", await got("GET", "/v1/files"))
    check_schema("DeleteFileResponse", await got("DELETE", f"/v1/files/{file.id}"))


BODIES: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": HELLO, "max_tokens": 5},
        {"messages": HELLO, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 4},
    ],
    TEXT: [{"prompt": ["Hi", [70, 71]], "echo": True, "logprobs": 1, "max_tokens": 3}],
    "/v1/embeddings": [{"input": ["Hi", "Ho"]}, {"input": "Hi", "encoding_format": "base64"}],
    "/v1/responses": [{"input": "Hi", "max_output_tokens": 5}],
}


def without_names(value: Any) -> Any:
    if isinstance(value, dict):
        names = ("id", "created", "created_at", "completed_at", "item_id")
        return {name: without_names(each) for name, each in value.items() if name not in names}
    return [without_names(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("endpoint", BODIES)
async def test_a_line_is_answered_as_over_http(app: Any, endpoint: str) -> None:
    bodies = BODIES[endpoint]
    made = await begin(
        app.openai, b"".join(line(str(n), body, endpoint) for n, body in enumerate(bodies)), endpoint=endpoint
    )
    good, bad = await outputs(app.openai, await until(app.openai, made.id))
    assert not bad and len(good) == len(bodies)
    for each in good:
        status, answer = await app.post(endpoint, bodies[int(each["custom_id"])])
        assert status == 200 and without_names(each["response"]["body"]) == without_names(answer)
        assert each["response"]["status_code"] == 200 and each["error"] is None
        if "id" in answer and endpoint != "/v1/responses":
            assert each["response"]["request_id"] == each["response"]["body"]["id"]


async def test_a_response_of_a_line_can_be_continued(app: Any) -> None:
    made = await begin(app.openai, line("a", {"input": "Hi"}, "/v1/responses"), endpoint="/v1/responses")
    [answer], _ = await outputs(app.openai, await until(app.openai, made.id))
    stored = await app.openai.responses.retrieve(answer["response"]["body"]["id"])
    assert stored.output_text


WRONG: list[tuple[bytes, str | None, str, int | None]] = [
    (b"no JSON\n", None, "invalid_json_line", None),
    (b"\xff\xfe\n", None, "invalid_json_line", None),
    (line("request-1", {}), None, "duplicate_custom_id", None),
    (line("url", {}, CHAT), "url", "invalid_url", None),
    (line("empty", {}), "empty", "prompt: is missing", 400),
    (line("type", {"prompt": 7}), "type", "prompt", 400),
    (line("model", {"prompt": "Hi", "model": "nowhere"}), "model", "does not exist", 404),
    (line("long", {"prompt": "Hi " * 1000}), "long", "maximum context length", 400),
    (line("much", {"prompt": "Hi", "max_tokens": 100_000}), "much", "context", 400),
    (line("stream", {"prompt": "Hi", "stream": True}), "stream", "stream means nothing in a batch", 400),
    (line("n", {"prompt": "Hi", "n": 1000}), "n", "between 1 and 128", 400),
    (line("id", {"prompt": "Hi", "request_id": "../x"}), "id", "request_id must be", 400),
]


async def test_a_wrong_line_fails_alone(app: Any) -> None:
    made = await begin(app.openai, texts(5) + b"".join(each[0] for each in WRONG) + line("last", {"prompt": "Hi"}))
    batch = await until(app.openai, made.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 6 + len(WRONG), 6, len(WRONG))
    good, bad = await outputs(app.openai, batch)
    assert {each["custom_id"] for each in good} == {f"request-{n}" for n in range(5)} | {"last"}
    by_line = {int(each["id"].rpartition("_")[2]): each for each in bad}
    for number, (_, custom_id, words, status) in enumerate(WRONG, start=6):
        found = by_line[number]
        assert found["custom_id"] == custom_id
        if status is None:
            assert found["response"] is None and found["error"]["code"] == words
            assert found["error"]["message"].startswith(f"line {number}: ")
        else:
            assert found["error"] is None and found["response"]["status_code"] == status
            error = found["response"]["body"]["error"]
            assert words in error["message"] and error["type"] == "invalid_request_error", error


async def test_warnings_stand_beside_the_answer(app: Any) -> None:
    made = await begin(app.openai, line("a", {"prompt": "Hi", "colour": "red", "max_tokens": 2}))
    [answer], _ = await outputs(app.openai, await until(app.openai, made.id))
    assert answer["response"]["warnings"] == ["ignored unknown fields: 'colour'"]


async def test_a_failure_of_the_server_fails_its_line_alone(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app.engine.failure = ZeroDivisionError("oh")
    batch = await until(app.openai, (await begin(app.openai, texts(1))).id)
    _, [answer] = await outputs(app.openai, batch)
    assert answer["response"]["status_code"] == 500 and "oh" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "empty_file"), (b"\n \n", "empty_file"), (b"x\n" * 6, "too_many_lines")]
)
async def test_what_cannot_be_run_fails_as_a_whole(
    app: Any, content: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "MOST_LINES", 5)
    batch = await until(app.openai, (await begin(app.openai, content)).id)
    assert batch.status == "failed" and batch.failed_at and batch.errors.data[0].code == code
    assert batch.output_file_id is None and batch.error_file_id is None
    async with asyncio.timeout(5):
        while app.runner.app[BATCH_STORE].work(batch.id).exists():
            await asyncio.sleep(0.01)
    with pytest.raises(ConflictError, match="the batch is failed, so it cannot be cancelled"):
        await app.openai.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"endpoint": "/v1/messages"}, "endpoint must be one of /v1/chat/completions, /v1/completions, /v1/emb"),
        ({"endpoint": "/v1/moderations"}, "endpoint must be one of"),
        ({"completion_window": "1 week"}, "completion_window must be like 24h, 90m or 7d"),
        ({"completion_window": "31d"}, "at most 30d"),
        ({"completion_window": "0h"}, "completion_window must be"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata has 17 pairs; at most 16"),
        ({"metadata": {"a": "x" * 513}}, "values of at most 512"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
    ],
)
async def test_a_wrong_request_for_a_batch_is_named(app: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        await begin(app.openai, texts(1), **changes)
    assert app.runner.app[BATCH_STORE].batches.ids() == []


@pytest.mark.parametrize("identity", ["file-x", "../../etc/passwd", "file-" + "0" * 30, "", "x" * 5000])
async def test_a_batch_of_no_file_is_refused(app: Any, identity: str) -> None:
    body = {"input_file_id": identity, "endpoint": TEXT, "completion_window": "24h"}
    status, answer = await app.post("/v1/batches", body)
    assert status == 404 and "there is no file" in answer["error"]["message"]
    async with app.http.get("/v1/batches/..%2F..%2Fetc") as response:
        assert response.status == 404 and "there is no batch" in (await response.json())["error"]["message"]


async def test_an_output_is_no_input(app: Any) -> None:
    batch = await until(app.openai, (await begin(app.openai, texts(1))).id)
    body = {"input_file_id": batch.output_file_id, "endpoint": TEXT, "completion_window": "24h"}
    status, answer = await app.post("/v1/batches", body)
    assert status == 400 and "of purpose batch_output" in answer["error"]["message"]


async def test_a_batch_can_be_cancelled(app: Any, start_app: Any) -> None:
    app.engine.gate.clear()
    made = await begin(app.openai, texts(300))
    await app.until_running(128)  # half of --max-num-seqs: not all of them
    assert (await app.openai.batches.cancel(made.id)).status == "cancelling"
    assert (await app.openai.batches.retrieve(made.id)).status in ("cancelling", "cancelled")
    batch = await until(app.openai, made.id)
    assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at and not batch.completed_at
    good, bad = await outputs(app.openai, batch)
    assert not good and len(bad) == len({each["custom_id"] for each in bad}) == batch.request_counts.failed == 300
    assert {each["error"]["code"] for each in bad} == {"batch_cancelled"}
    assert app.engine.running == 0
    with pytest.raises(ConflictError, match="the batch is cancelled"):
        await app.openai.batches.cancel(made.id)


async def test_what_was_answered_before_the_cancel_is_kept(app: Any) -> None:
    app.runner.app[RUNNER].slots = job_module.Slots(1)
    made = await begin(app.openai, texts(5))
    async with asyncio.timeout(10):
        while len(app.engine.prompts) < 2:
            await asyncio.sleep(0)
    app.engine.gate.clear()
    await app.openai.batches.cancel(made.id)
    batch = await until(app.openai, made.id)
    good, bad = await outputs(app.openai, batch)
    assert len(good) >= 1 and len(good) + len(bad) == 5
    assert {each["custom_id"] for each in good} | {each["custom_id"] for each in bad} == {
        f"request-{n}" for n in range(5)
    }


async def test_a_batch_expires(app: Any) -> None:
    app.engine.gate.clear()
    made = await begin(app.openai, texts(3), completion_window="1s")
    batch = await until(app.openai, made.id)
    assert batch.status == "expired" and batch.expired_at > batch.created_at
    _, bad = await outputs(app.openai, batch)
    assert len(bad) == 3 and {each["error"]["code"] for each in bad} == {"batch_expired"}


async def test_a_file_may_be_deleted_once_its_batch_has_begun(app: Any) -> None:
    app.engine.gate.clear()
    made = await begin(app.openai, texts(3))
    await app.openai.files.delete(made.input_file_id)
    app.engine.gate.set()
    assert (await until(app.openai, made.id)).request_counts.completed == 3


async def test_no_more_lines_than_allowed_are_answered_at_once(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path), batch_lines=3)
    async with running(app):
        app.engine.gate.clear()
        first, second = await begin(app.openai, texts(10)), await begin(app.openai, texts(10))
        await app.until_running(3)
        await asyncio.sleep(0.2)
        assert app.engine.running == 3
        most = 0

        def watch() -> None:
            nonlocal most
            most = max(most, app.engine.running)
            asyncio.get_running_loop().call_soon(watch)

        watch()
        app.engine.gate.set()
        for made in (first, second):
            assert (await until(app.openai, made.id)).request_counts.completed == 10
        assert most == 3


async def test_long_lines_take_more_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "_BYTES", 100)
    slots = job_module.Slots(4)
    assert [await slots.take(50), await slots.take(250)] == [1, 3]
    third = asyncio.create_task(slots.take(10_000))
    fourth = asyncio.create_task(slots.take(1))
    await asyncio.sleep(0.01)
    slots.give_back(3)
    await asyncio.sleep(0.01)
    assert not third.done() and not fourth.done()  # each in its turn
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    assert await fourth == 1 and [await slots.take(0), await slots.take(0)] == [1, 1]


async def test_a_line_that_finds_no_room_is_asked_again(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 429 is what a client should try again on: as the answer to a line it would be lost work."""
    refused, full = [], Places._full
    take = Places.take

    def refuse_once(self: Places, answers: int) -> Any:
        if len(refused) < 3:
            error = full(self)
            error.headers = {"Retry-After": "0.01"}
            refused.append(error)
            raise error
        return take(self, answers)

    monkeypatch.setattr(Places, "take", refuse_once)
    batch = await until(app.openai, (await begin(app.openai, texts(3))).id)
    assert len(refused) == 3 and batch.request_counts.completed == 3


async def test_lines_count_for_the_key_that_sent_them(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path), api_key=["one", "two"], max_tokens_per_minute_per_key=10_000)
    one, two = (AsyncOpenAI(base_url=f"{app.url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
    async with running(app):
        made = await begin(one, texts(3))
        batch = await until(one, made.id)
        assert [each.id async for each in two.batches.list()] == []
        for call in (two.batches.retrieve, two.batches.cancel):
            with pytest.raises(NotFoundError):
                await call(made.id)
        with pytest.raises(NotFoundError):
            await two.files.content(batch.output_file_id)
        assert len((await outputs(one, batch))[0]) == 3
        [spent, unspent] = [account._left for account in app.runner.app[RUNNER]._accounts.values()]
        assert spent < 10_000 - batch.usage.total_tokens / 2 and unspent == 10_000
    for client in (one, two):
        await client.close()


async def torn(app: Any, made: Any, count: int) -> int:
    """Let so many lines be asked, and then end the server as if it were killed amid an answer; returns how many are
    written."""
    app.runner.app[RUNNER].slots = job_module.Slots(1)
    task = asyncio.create_task(app.runner.app[RUNNER].run())
    async with asyncio.timeout(10):
        while len(app.engine.prompts) <= count:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    folder = app.runner.app[BATCH_STORE].work(made.id)
    written = len((folder / "output.jsonl").read_bytes().splitlines())
    for name in ("output.jsonl", "errors.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"id":"batch_req_x_3","custom')
    return written


async def test_the_next_server_goes_on_where_a_killed_one_was(start_app: Any, tmp_path: Path) -> None:
    first = await start_app(batch_dir=str(tmp_path))
    made = await begin(first.openai, b"x\n" + texts(30))
    written = await torn(first, made, 10)
    second = await start_app(batch_dir=str(tmp_path))
    assert (await second.openai.batches.retrieve(made.id)).status == "in_progress"
    async with running(second):
        batch = await until(second.openai, made.id)
    good, bad = await outputs(second.openai, batch)
    assert sorted(each["custom_id"] for each in good) == sorted(f"request-{n}" for n in range(30))
    assert len(bad) == 1 and (batch.request_counts.completed, batch.request_counts.failed) == (30, 1)
    assert 9 <= written < 30 and len(second.engine.prompts) == 30 - written  # none that is written is asked again
    assert batch.usage.output_tokens == 90


@pytest.mark.parametrize("step", range(6))
async def test_a_server_killed_while_it_makes_the_files(start_app: Any, tmp_path: Path, step: int) -> None:
    """Wherever the making of the files is cut short, they are whole and there once in the end."""
    first = await start_app(batch_dir=str(tmp_path))
    store = first.runner.app[BATCH_STORE]
    left = [step]

    def cut(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not left[0]:
                raise OSError("killed")
            left[0] -= 1
            return method(*arguments)

        return call

    made = await begin(first.openai, b"x\n" + texts(3))
    publish, begun = runner_module._Run._publish, threading.Event()

    def publish_cut(run: Any) -> None:
        begun.set()
        store.add, store.batches.put = cut(store.add), cut(store.batches.put)
        store.files.put = cut(store.files.put)
        publish(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module._Run, "_publish", publish_cut)
        async with running(first):
            async with asyncio.timeout(10):
                while not begun.is_set() or (left[0] and not store.batches.find(made.id).done):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
    second = await start_app(batch_dir=str(tmp_path))
    async with running(second):
        batch = await until(second.openai, made.id)
    good, bad = await outputs(second.openai, batch)
    assert len(good) == 3 and len(bad) == 1 and batch.status == "completed"
    assert second.engine.prompts == [] and batch.request_counts.completed == 3
    assert len([file async for file in second.openai.files.list(purpose="batch_output")]) == 2


async def test_a_server_that_stops_while_it_takes_a_batch_does_not_keep_it(
    start_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await start_app(batch_dir=str(tmp_path))
    made = await begin(first.openai, texts(3))
    taking, taken = threading.Event(), runner_module.lock

    def slow(path: Path) -> int | None:
        taking.set()
        time.sleep(0.2)
        return taken(path)

    monkeypatch.setattr(runner_module, "lock", slow)
    async with running(first):
        assert await asyncio.to_thread(taking.wait, 10)
    monkeypatch.setattr(runner_module, "lock", taken)
    second = await start_app(batch_dir=str(tmp_path))
    async with running(second):
        assert (await until(second.openai, made.id)).status == "completed"


async def test_two_servers_share_a_folder_but_no_batch(start_app: Any, tmp_path: Path) -> None:
    servers = [await start_app(batch_dir=str(tmp_path)) for _ in range(2)]
    async with running(servers[0]), running(servers[1]):
        made = [await begin(servers[n % 2].openai, texts(20)) for n in range(6)]
        for n, each in enumerate(made):
            batch = await until(servers[n % 2].openai, each.id)
            good, bad = await outputs(servers[1 - n % 2].openai, batch)
            assert len({answer["custom_id"] for answer in good}) == len(good) == 20 and not bad
    assert sum(len(server.engine.prompts) for server in servers) == 120


async def test_a_batch_is_cancelled_by_whichever_server_hears_of_it(start_app: Any, tmp_path: Path) -> None:
    servers = [await start_app(batch_dir=str(tmp_path)) for _ in range(2)]
    async with running(servers[0]):
        servers[0].engine.gate.clear()
        made = await begin(servers[0].openai, texts(3))
        await servers[0].until_running(3)
        await servers[1].openai.batches.cancel(made.id)
        assert (await until(servers[1].openai, made.id)).status == "cancelled"


async def test_a_server_does_not_watch_for_what_another_has(
    start_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [await start_app(batch_dir=str(tmp_path)) for _ in range(2)]
    servers[0].engine.gate.clear()
    async with running(servers[0]):
        made = await begin(servers[0].openai, texts(3))
        await servers[0].until_running(3)
        monkeypatch.setattr(runner_module, "_FOLDER_PERIOD", 1000)
        looks = []
        other = servers[1].runner.app[RUNNER]
        ready = other._ready
        monkeypatch.setattr(other, "_ready", lambda: looks.append(ready()) or looks[-1])
        async with running(servers[1]):
            await asyncio.sleep(0.3)
        assert [len(found) for found in looks] == [1] and looks[0][0].id == made.id


async def test_a_folder_that_cannot_be_read_is_looked_at_again(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, failures = app.runner.app[BATCH_STORE], [OSError(24, "Too many open files")] * 3
    ids = store.batches.ids

    def fail() -> list[str]:
        if failures:
            raise failures.pop()
        return ids()

    monkeypatch.setattr(store.batches, "ids", fail)
    assert (await until(app.openai, (await begin(app.openai, texts(1))).id)).status == "completed"


async def test_a_batch_is_left_to_servers_of_its_model_and_key(start_app: Any, tmp_path: Path) -> None:
    first = await start_app(batch_dir=str(tmp_path), api_key=["secret"])
    made = await begin(first.openai, texts(2))
    other_model = await start_app(batch_dir=str(tmp_path), served_model_name=["other"])
    other_key = await start_app(batch_dir=str(tmp_path), api_key=["another"])
    async with running(other_model), running(other_key):
        await asyncio.sleep(0.3)
    assert other_model.engine.prompts == other_key.engine.prompts == []
    async with running(first):
        assert (await until(first.openai, made.id)).status == "completed"


async def test_a_full_disk_is_waited_for(app: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    failures = [OSError(28, "No space left on device")] * 2
    add = job_module.Outputs.add

    def fail(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        add(*arguments)

    monkeypatch.setattr(job_module.Outputs, "add", fail)
    batch = await until(app.openai, (await begin(app.openai, texts(5))).id)
    good, _ = await outputs(app.openai, batch)
    assert len(good) == 5 and "No space left on device" in caplog.text


async def test_a_damaged_record_harms_no_other(app: Any) -> None:
    batch = await until(app.openai, (await begin(app.openai, texts(1))).id)
    path = app.runner.app[BATCH_STORE].batches.folder / f"{batch.id}.json"
    path.write_bytes(path.read_bytes()[:50])
    assert (await app.openai.batches.list()).data == []
    assert (await until(app.openai, (await begin(app.openai, texts(1))).id)).status == "completed"


async def test_a_batch_whose_folder_is_gone_fails(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path))
    made = await begin(app.openai, texts(1))
    shutil.rmtree(app.runner.app[BATCH_STORE].work(made.id))
    async with running(app):
        batch = await until(app.openai, made.id)
    assert batch.status == "failed" and batch.errors.data[0].code == "input_gone"


async def test_what_a_killed_server_left_of_an_ended_batch_is_removed(app: Any) -> None:
    store = app.runner.app[BATCH_STORE]
    batch = await until(app.openai, (await begin(app.openai, texts(1))).id)
    async with asyncio.timeout(5):
        while store.work(batch.id).exists():
            await asyncio.sleep(0.01)
    (store.work(batch.id)).mkdir()
    app.engine.gate.clear()
    second = await begin(app.openai, texts(1))
    store.sweep()
    assert not store.work(batch.id).exists() and store.work(second.id).exists()


async def test_a_stopping_server_leaves_its_batches(app: Any) -> None:
    app.engine.gate.clear()
    made = await begin(app.openai, texts(3))
    await app.until_running(3)
    store = app.runner.app[BATCH_STORE]
    await app.serving.drain(0.05)
    await asyncio.sleep(0.05)
    kept = store.batches.find(made.id)
    assert kept.batch.status == "in_progress" and kept.batch.request_counts.failed == 0
    assert msgspec.json.decode((store.batches.folder / f"{made.id}.json").read_bytes())["batch"]["id"] == made.id


async def test_lines_with_images(app: Any) -> None:
    """Each as over HTTP, with what is wrong with its image."""
    let_see(app)
    bodies = [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}], "max_tokens": 2}
        for url in (picture("a"), "data:image/png;base64,!!")
    ]
    lines = b"".join(line(str(number), body, CHAT) for number, body in enumerate(bodies))
    made = await begin(app.openai, lines, endpoint=CHAT)
    [good], [bad] = await outputs(app.openai, await until(app.openai, made.id))
    assert good["response"]["body"]["usage"]["prompt_tokens_details"]["image_tokens"] == 3
    assert "messages[0].content[0].image_url.url: the image is not valid base64" in str(bad)
    assert [item.digest for items in app.engine.items for item in items] == [digest_of(picture("a"))]
