"""The log, whose reader may be slow, or stop reading."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from sophserve import logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)


def say(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.LogRecord("a", logging.INFO, "a.py", 1, text, (), None))


def test_lines_come_in_order_and_whole(pipe: tuple[int, int]) -> None:
    handler = logs.PatientHandler(pipe[1])
    for number in range(30):
        say(handler, f"line {number} \ud800")
    handler.flush()
    assert os.read(pipe[0], 4096).decode().splitlines() == [rf"line {number} \ud800" for number in range(30)]


def test_nobody_waits_for_a_reader_that_stopped(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 50_000)
    monkeypatch.setattr(logs, "LAST_CHANCE", 0.2)
    handler = logs.PatientHandler(pipe[1])
    for number in range(200):
        say(handler, f"{number} " + "x" * 1000)
    handler.flush()  # returns, although nothing is read
    found = b""
    while b"left out" not in found:
        found += os.read(pipe[0], 65536)
    *lines, last = found.decode().splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(len(lines))]
    assert 45 <= len(lines) < 70
    assert last == f"{200 - len(lines)} lines of the log were left out, since it was read too slowly"


def test_a_reader_that_has_gone_is_nothing_to_worry_about() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = logs.PatientHandler(writer)
    say(handler, "unheard")
    handler.flush()
    assert not handler._lines
    os.close(writer)


def test_the_server_serves_and_ends_while_nobody_reads_its_log() -> None:
    command = [sys.executable, "-m", "sophserve", "--model", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        line = next(line for line in process.stderr if b"ready: " in line)
        url = line.split(b"ready: ")[1].split(b"/v1")[0].decode()
        end = time.monotonic() + 20
        for _ in range(200):
            with urllib.request.urlopen(url + "/v1/models", timeout=max(0.1, end - time.monotonic())) as answer:
                assert answer.status == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
