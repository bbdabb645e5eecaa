"""/v1/files: uploads in pieces, their limits, and who sees what."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import FormData
from openai import AsyncOpenAI, NotFoundError

from sophserve.api.batches import store as store_module
from sophserve.api.batches.store import BATCH_STORE
from sophserve.config import ServerConfig
from sophserve.errors import ConfigError

LINES = b'{"custom_id": "a"}\n'
FORM = b"multipart/form-data; boundary=x"


@pytest.fixture
async def app(start_app: Any, tmp_path: Path) -> Any:
    return await start_app(batch_dir=str(tmp_path / "kept"))


def form(content: bytes = LINES, name: str | None = "in.jsonl", **fields: str) -> FormData:
    data = FormData({"purpose": "batch", **fields}, quote_fields=False)
    data.add_field("file", content, filename=name, content_type="application/jsonl")
    return data


async def upload(app: Any, data: Any, **options: Any) -> tuple[int, Any]:
    async with app.http.post("/v1/files", data=data, **options) as response:
        return response.status, await response.json()


async def test_the_official_client_keeps_files(app: Any) -> None:
    files = app.openai.files
    content = LINES * 100_000  # more than goes at once
    first = await files.create(file=("in.jsonl", content), purpose="batch")
    assert (first.object, first.bytes, first.filename, first.purpose) == ("file", len(content), "in.jsonl", "batch")
    assert first.status == "processed" and first.expires_at == first.created_at + 30 * 86400
    kept = {"anchor": "created_at", "seconds": 3600}
    second = await files.create(file=("zwei 文件.jsonl", b""), purpose="batch", expires_after=kept)
    assert second.expires_at == second.created_at + 3600 and second.bytes == 0
    assert second.filename == "zwei 文件.jsonl"
    assert (await files.retrieve(first.id)) == first
    assert (await files.wait_for_processing(first.id)) == first
    assert (await files.content(first.id)).content == content
    assert [file.id async for file in files.list()] == [second.id, first.id]
    assert [file.id async for file in files.list(order="asc", limit=1)] == [first.id, second.id]
    assert (await files.list(after=second.id)).data == [first]
    assert (await files.list(purpose="batch_output")).data == []
    deleted = await files.delete(first.id)
    assert deleted.deleted and deleted.id == first.id
    with pytest.raises(NotFoundError, match="there is no file"):
        await files.retrieve(first.id)
    assert [file.id async for file in files.list()] == [second.id]


async def test_a_part_of_a_file_can_be_fetched(app: Any) -> None:
    file = await app.openai.files.create(file=("in.jsonl", b"0123456789"), purpose="batch")
    path = f"/v1/files/{file.id}/content"
    async with app.http.get(path, headers={"Range": "bytes=2-4"}) as response:
        assert response.status == 206 and await response.read() == b"234"
    async with app.http.get(path) as response:
        assert response.content_type == "application/octet-stream" and response.headers["X-Request-Id"]
    async with app.http.head(path) as response:
        assert response.status == 200 and response.headers["Content-Length"] == "10"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (form(name="../../etc/passwd"), "must be a name alone, without a path"),
        (form(name="C:\\in.jsonl"), "must be a name alone, without a path"),
        (form(name=".."), "must be a name alone"),
        (form(name="x" * 256), "at most 255 characters"),
        (form(purpose="assistants"), "purpose: Invalid enum value 'assistants'"),
        (form(**{"expires_after[seconds]": "10"}), "expires_after"),
        (form(**{"expires_after[seconds]": "soon"}), "expires_after"),
        (form(**{"expires_after[anchor]": "never"}), "expires_after"),
        (form(purpose="x" * 5000), "purpose has more than 4096 bytes"),
        (FormData({"purpose": "batch"}, default_to_multipart=True), "file: is missing"),
        ({"purpose": "batch"}, "Content-Type: multipart/form-data"),
    ],
)
async def test_a_wrong_form_is_named(app: Any, data: Any, words: str) -> None:
    status, answer = await upload(app, data)
    assert status == 400 and words in answer["error"]["message"], answer
    assert list(app.runner.app[BATCH_STORE].files.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x\r\n\r\n\r\n--x--\r\n"),
        (FORM.decode(), b""),
        (FORM.decode(), b"no form\r\n"),
        (FORM.decode(), b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nabc"),
        (FORM.decode(), b"--x\r\n" + b"a" * 100_000 + b"\r\n\r\n--x--\r\n"),
        (FORM.decode(), b"--x\r\nX: \xff\xfe\r\n\r\nabc\r\n--x--\r\n"),
        (
            FORM.decode(),
            b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--\r\n",
        ),
        (
            FORM.decode(),
            b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 100 + b"--x--",
        ),
        ("multipart/form-data; boundary=" + "x" * 200, b"--x--"),
    ],
)
async def test_what_is_no_form_is_refused(app: Any, kind: str, body: bytes) -> None:
    status, answer = await upload(app, body, headers={"Content-Type": kind})
    assert status == 400 and "form" in answer["error"]["message"], answer
    assert list(app.runner.app[BATCH_STORE].files.folder.glob("*")) == []


async def test_unknown_fields_are_told_and_one_file_is_enough(app: Any) -> None:
    async with app.http.post("/v1/files", data=form(colour="red")) as response:
        assert response.status == 200 and "'colour'" in response.headers["X-Sophserve-Warnings"]
    data = form()
    data.add_field("file", b"", filename="more.jsonl")
    status, answer = await upload(app, data)
    assert status == 400 and "two files" in answer["error"]["message"]


async def test_a_file_that_is_too_large_is_refused(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path), max_file_size="100KiB", batch_storage="150KiB")

    async def pieces() -> Any:  # nobody says how many
        for _ in range(12):
            yield b"x" * 10_240

    said = form(b"x" * 200_000)
    unsaid = FormData({"purpose": "batch"})
    unsaid.add_field("file", pieces(), filename="in.jsonl")
    for data in (said, unsaid):
        status, answer = await upload(app, data)
        assert status == 413 and "split it into several, or raise --max-file-size" in answer["error"]["message"]
    assert (await upload(app, form(b"x" * 102_400)))[0] == 200
    status, answer = await upload(app, form(b"x" * 60_000))
    assert status == 413 and "raise --batch-storage" in answer["error"]["message"]
    assert (await upload(app, form(b"x" * 40_000)))[0] == 200
    assert len(list(app.runner.app[BATCH_STORE].files.folder.iterdir())) == 4


async def test_uploads_at_once_share_the_storage(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path), batch_storage="150KiB")
    held = asyncio.Event()

    async def slow() -> Any:
        yield b"x" * 100_000
        await held.wait()

    data = FormData({"purpose": "batch"})
    data.add_field("file", slow(), filename="in.jsonl")
    first = asyncio.create_task(upload(app, data))
    async with asyncio.timeout(5):
        while app.runner.app[BATCH_STORE]._arriving < 60_000:
            await asyncio.sleep(0.01)
    assert (await upload(app, form(b"x" * 100_000)))[0] == 413
    held.set()
    assert (await first)[0] == 200 and app.runner.app[BATCH_STORE]._arriving == 0


async def test_an_upload_that_stands_still_or_breaks_off_leaves_nothing(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path), body_timeout=0.3)
    folder = app.runner.app[BATCH_STORE].files.folder

    async def stuck() -> Any:
        yield b"x" * 100_000
        await asyncio.sleep(60)

    data = FormData({"purpose": "batch"})
    data.add_field("file", stuck(), filename="in.jsonl")
    status, answer = await upload(app, data)
    assert status == 408 and answer["error"]["code"] == "body_timeout"
    _, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: " + FORM + b"\r\nContent-Length: 999\r\n\r\n")
    writer.write(b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nabc")
    await writer.drain()
    async with asyncio.timeout(5):
        while not list(folder.iterdir()):
            await asyncio.sleep(0.01)
        writer.close()
        while list(folder.iterdir()):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "identity", ["file-", "file-x", "..%2F..%2Fetc%2Fpasswd", "file-" + "0" * 30, "file-%00", "a" * 5000, "%FF"]
)
async def test_ids_that_are_none_lead_nowhere(app: Any, identity: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        async with app.http.request(method, f"{app.url}/v1/files/{identity}{path}") as response:
            error = (await response.json())["error"]
            assert response.status == 404 and "there is no file" in error["message"], error
    async with app.http.get(f"/v1/files?after={identity}") as response:
        assert response.status in (200, 404) if identity.endswith("0" * 30) else response.status == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up"])
async def test_wrong_queries_are_named(app: Any, query: str) -> None:
    async with app.http.get(f"/v1/files?{query}") as response:
        assert response.status == 400 and (await response.json())["error"]["param"] == query.partition("=")[0]


async def test_keys_see_their_own_files(start_app: Any, tmp_path: Path) -> None:
    app = await start_app(batch_dir=str(tmp_path))
    everybodys = await app.openai.files.create(file=("in.jsonl", LINES), purpose="batch")
    app = await start_app(batch_dir=str(tmp_path), api_key=["one", "two"])
    one, two = (AsyncOpenAI(base_url=f"{app.url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
    file = await one.files.create(file=("in.jsonl", LINES), purpose="batch")
    assert [each.id async for each in one.files.list()] == [file.id, everybodys.id]
    assert [each.id async for each in two.files.list()] == [everybodys.id]
    for call in (two.files.retrieve, two.files.content, two.files.delete):
        with pytest.raises(NotFoundError):
            await call(file.id)
    with pytest.raises(NotFoundError):
        await two.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    assert (await one.files.content(file.id)).content == LINES
    for client in (one, two):
        await client.close()


async def test_what_is_over_its_time_is_gone(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = app.runner.app[BATCH_STORE]
    file = await app.openai.files.create(file=("in.jsonl", LINES), purpose="batch")
    other = await app.openai.files.create(file=("in.jsonl", LINES), purpose="batch")
    (kept.files.folder / ".torn.upload").write_bytes(b"x")
    kept.sweep()
    assert len(list(kept.files.folder.iterdir())) == 5
    found = kept.files.find(file.id)
    kept.files.put(msgspec.structs.replace(found, file=msgspec.structs.replace(found.file, expires_at=1)))
    with pytest.raises(NotFoundError):
        await app.openai.files.retrieve(file.id)
    (kept.files.folder / f"{other.id}.json").chmod(0o600)
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + 100_000)
    kept.sweep()
    assert sorted(path.name for path in kept.files.folder.iterdir()) == [other.id, f"{other.id}.json"]


async def test_a_record_that_cannot_be_read_is_not_deleted(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = app.runner.app[BATCH_STORE]
    file = await app.openai.files.create(file=("in.jsonl", LINES), purpose="batch")
    (kept.files.folder / f"{file.id}.json").write_bytes(b"{")
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + 100_000_000)
    kept.sweep()
    assert kept.content(file.id).exists() and (await app.openai.files.list()).data == []


async def test_a_folder_that_cannot_be_used_is_told(start_app: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = await start_app(batch_dir=str(tmp_path / "file" / "kept"))
    status, answer = await upload(app, form())
    assert status == 404 and "choose another --batch-dir" in answer["error"]["message"]
    assert (await app.openai.files.list()).data == []
    with pytest.raises(ConfigError, match=r"cannot keep files in .*: File exists; choose another --batch-dir"):
        app.runner.app[BATCH_STORE].prepare()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_file_size": "big"}, "cannot read the size 'big'"),
        ({"batch_storage": "0"}, "cannot read the size '0'"),
        ({"batch_lines": 0}, "--batch-lines must be at least 1, got 0"),
        ({"batch_dir": ""}, "--batch-dir is empty"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**options)
