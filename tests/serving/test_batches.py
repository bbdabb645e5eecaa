"""Batches over the real processes, which are killed, started again, and run beside each other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
COMMAND = "import sys; from sophserve.api.batches.command import batch; sys.exit(batch(sys.argv[1:]))"


def line(number: int, url: str = CHAT, **body: Any) -> str:
    messages = [{"role": "user", "content": f"Number {number}"}]
    asked = {"messages": messages} if url == CHAT else {"prompt": f"Number {number}"}
    body = {"model": "tiny", "max_tokens": 4, "temperature": 0, **asked, **body}
    return json.dumps({"custom_id": f"request-{number}", "method": "POST", "url": url, "body": body}) + "\n"


def write(path: Path, count: int) -> Path:
    path.write_text("".join(line(number) for number in range(count)))
    return path


def answers(path: Path) -> dict[str, str]:
    """What the model said by custom_id, each once."""
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    found = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in lines}
    assert len(found) == len(lines)
    return found


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def done(client: Any, identity: str) -> Any:
    def ended() -> Any:
        batch = client.batches.retrieve(identity)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return until(ended)


def test_a_batch_of_a_killed_server_is_finished_by_the_next(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    """400 requests, killed in the middle: each is in the outputs once, with the answer that it always has."""
    options = ("--batch-dir", str(tmp_path / "kept"), "--batch-lines", "8")
    first = start_server(make_checkpoint("qwen2"), *options)
    client = first.client()
    file = client.files.create(file=write(tmp_path / "in.jsonl", 400), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    output = tmp_path / "kept" / "batches" / batch.id / "output.jsonl"
    until(lambda: output.exists() and output.stat().st_size > 80_000)
    first.stop(signal.SIGKILL)
    written = output.read_bytes()
    before = written.count(b"\n")
    assert 40 < before < 400
    output.write_bytes(written + b'{"id":"batch_req_1_2","custom_id":"reque')  # as a larger write may end
    second = start_server(make_checkpoint("qwen2"), *options)
    client = second.client()
    batch = done(client, batch.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 400, 400, 0)
    content = client.files.content(batch.output_file_id).content
    assert content.startswith(written)  # nothing that was answered is answered again
    (tmp_path / "out.jsonl").write_bytes(content)
    found = answers(tmp_path / "out.jsonl")
    assert found.keys() == {f"request-{number}" for number in range(400)}
    for number in (0, 200, 399):
        asked = json.loads(line(number))["body"]
        assert client.chat.completions.create(**asked).choices[0].message.content == found[f"request-{number}"]
    assert second.stop() == 0 and "Traceback" not in "".join(first.log + second.log)


def test_a_server_that_is_stopped_leaves_its_batch_at_once(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("--batch-dir", str(tmp_path / "kept"))
    first = start_server(make_checkpoint("qwen2"), *options)
    (tmp_path / "in.jsonl").write_text(
        "".join(line(number, TEXT, max_tokens=200, ignore_eos=True) for number in range(400))
    )
    client = first.client()
    file = client.files.create(file=tmp_path / "in.jsonl", purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=TEXT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert first.stop() == 0 and "Traceback" not in "".join(first.log)
    second = start_server(make_checkpoint("qwen2"), *options)
    client = second.client()
    client.batches.cancel(batch.id)
    batch = done(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed + batch.request_counts.failed == 400


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


def test_the_command_goes_on_where_it_was_killed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"
    options = (str(source), "-o", str(output), "--model", str(make_checkpoint("qwen2")), "--served-model-name", "tiny")
    first = run(*options, "--max-num-seqs", "4")
    until(lambda: output.exists() and output.stat().st_size > 20_000)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate()
    assert not psutil.wait_procs(workers, timeout=10)[1]
    written = output.read_bytes()
    assert 10 < written.count(b"\n") < 300
    with output.open("ab") as file:
        file.write(b'{"id": "batch')
    with source.open("a") as file:
        file.write(line(300, TEXT) + line(301, model="other") + "{\n")  # and what has been added meanwhile
    second = run(*options)
    told, log = second.communicate(timeout=120)
    assert second.returncode == 1, log
    assert told == f"301 of 303 lines answered: {output}\n2 failed: {tmp_path / 'out.errors.jsonl'}\n"
    assert output.read_bytes().startswith(written)
    lines = [json.loads(each) for each in output.read_text().splitlines()]
    assert sorted(each["custom_id"] for each in lines) == sorted(f"request-{number}" for number in range(301))
    errors = [json.loads(each) for each in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert errors[0]["response"]["status_code"] == 404 and errors[1]["error"]["code"] == "invalid_json_line"
    third = run(*options)  # all is done: no model is loaded
    again, _ = third.communicate(timeout=60)
    assert again == told and third.returncode == 1


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", 2)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "notes").write_text("my notes\n")
    (tmp_path / "locked").write_bytes(b"")
    for arguments, words in (
        ((str(tmp_path / "nowhere"),), "cannot read .*nowhere: No such file"),
        ((str(tmp_path),), "cannot read .*: Is a directory"),
        ((str(source), "-o", str(source)), "is the input itself; choose another -o"),
        ((str(source), "-o", str(tmp_path / "no" / "out")), "there is no directory"),
        ((str(tmp_path / "empty"),), "has no lines"),
        ((str(source), "-o", str(tmp_path / "notes")), "holds something other than answers"),
        ((str(source), "--max-num-seqs", "0"), "--max-num-seqs must be at least 1"),
    ):
        done = run(*arguments, "--model", "demo")
        _, log = done.communicate(timeout=60)
        assert done.returncode != 0 and re.search(words, log), log
    assert source.read_text() == line(0) + line(1)
