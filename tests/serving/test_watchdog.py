"""Workers that are busy for longer than --step-timeout, on every path; and what surrounds a server's processes."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 1.0
# What takes longer than the timeout without coming to an end, by its path through the worker.
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "decode": ("completions", {"prompt": "hi", "n": 4, "stream": True}),
    "grammar": ("completions", {"prompt": "hi", "structured_outputs": {"regex": "[a-z ]+"}, "stream": True}),
    "prefill only": ("completions", {"prompt": [5] * 1500, "max_tokens": 1, "ignore_eos": True}),
    "embeddings": ("embeddings", {"input": [[5] * 1500] * 8}),
}


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def read_until(end: float, url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            assert line == b"\n" or b'"choices"' in line, line
            if time.monotonic() > end:
                return
    raise AssertionError("the stream ended too early")


@pytest.fixture(
    scope="module",
    params=[
        (),
        pytest.param(("--enforce-eager",), marks=pytest.mark.slow),
        pytest.param(("--tensor-parallel-size", "2"), marks=pytest.mark.slow),
        pytest.param(("--tensor-parallel-size", "2", "--enforce-eager"), marks=pytest.mark.slow),
        pytest.param(("--pipeline-parallel-size", "2"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def server(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], server_class: type[Any]
) -> Iterator[Any]:
    directory = make_checkpoint("qwen2", max_position_embeddings=16384)
    options = ("--step-timeout", str(TIMEOUT), "--no-enable-prefix-caching", "--max-num-batched-tokens", "64")
    server = server_class("--model", str(directory), *options, *request.param)
    server.wait_until_ready()
    yield server
    server.stop()


# Of a long prompt all steps are prefill, as of embeddings.
@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.slow) if path == "prefill only" else path for path in BODIES]
)
def test_a_busy_worker_is_not_restarted(path: str, server: Any) -> None:
    """For three times --step-timeout, and /live is 200 all the while."""
    endpoint, body = BODIES[path]
    body = {"model": "tiny", **body} | ({"max_tokens": 12_000, "ignore_eos": True} if body.get("stream") else {})
    workers = server.workers
    end = time.monotonic() + 3.5 * TIMEOUT

    def keep_busy(delay: float) -> None:
        time.sleep(delay)
        while time.monotonic() < end:
            if body.get("stream"):
                read_until(end, f"{server.url}/v1/{endpoint}", body)
            else:
                post(f"{server.url}/v1/{endpoint}", body)
            with urllib.request.urlopen(f"{server.url}/live") as answer:
                assert answer.status == 200

    # Several that end at other times, so that the worker is never without work: a beginning would be a sign of life.
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(keep_busy, (0,) if body.get("stream") else (0, 0.2, 0.4)))
    # A process that tries out grammars may have come.
    assert set(workers) <= set(server.workers) and "restarting" not in "".join(server.log)


def test_new_workers_have_as_many_blocks_as_those_before(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    """Although a share of the free memory would be less by then: the options leave memory as the only bound."""
    many = ("--max-num-seqs", "100000", "--max-num-batched-tokens", "100000", "--block-size", "256")
    server = start_server(make_checkpoint("qwen2"), *many)
    less = bytearray(256 << 20)
    less[::4096] = bytes(len(less) // 4096 + (len(less) % 4096 > 0)).replace(b"\0", b"\1")
    server.workers[0].kill()
    post(f"{server.url}/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 4})
    log = "".join(server.log)
    assert log.count("restarting") == 1 and "the worker is back" in log


@pytest.mark.parametrize(
    "closed", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("<&-", "2>&-")), "<&- >&-"]
)
def test_closed_standard_streams(closed: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The server drains when it is asked to stop, and no descriptor is taken for a closed stream."""
    socket = tmp_path / "socket"
    log = tmp_path / "log"
    python = f"exec {sys.executable} -m sophserve --model {make_checkpoint('qwen2')} --uds {socket}"
    redirected = "" if "2>" in closed else f"2>{log}"
    server = subprocess.Popen(["bash", "-c", f"{python} {redirected} {closed}"], stdout=subprocess.DEVNULL)
    try:
        asked = ["curl", "-sS", "--unix-socket", str(socket), "http://localhost/health"]
        end = time.monotonic() + 60
        while b'"ok"' not in subprocess.run(asked, capture_output=True, check=False).stdout:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        body = json.dumps({"prompt": "hi", "max_tokens": 200, "ignore_eos": True, "stream": True})
        address = ["http://localhost/v1/completions", "-d", body, "-H", "Content-Type: application/json"]
        answer = subprocess.Popen([*asked[:-1], "-N", *address], stdout=subprocess.PIPE)
        assert answer.stdout and b'"choices"' in answer.stdout.readline()
        server.send_signal(signal.SIGTERM)
        *_, last = answer.communicate(timeout=30)[0].split(b"\n\n")[:-1]
        assert last == b"data: [DONE]"
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()


def test_a_profile_on_a_full_disk_ends_and_says_why(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    """To the worker it looks so once a file has reached its limit."""
    server = start_server(make_checkpoint("qwen2"), cwd=tmp_path)
    workers = server.workers
    workers[0].rlimit(resource.RLIMIT_FSIZE, (64 << 10, resource.RLIM_INFINITY))
    folders = post(f"{server.url}/start_profile", {"mode": 2})["folders"]
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    first = post(f"{server.url}/v1/completions", body)["choices"][0]["text"]
    assert post(f"{server.url}/v1/completions", body)["choices"][0]["text"] == first
    stopped = post(f"{server.url}/stop_profile", {})
    assert stopped["folders"] == folders
    assert len(stopped["problems"]) == 1 and "ends at step" in stopped["problems"][0]
    assert server.workers == workers and "restarting" not in "".join(server.log)
    assert (Path(folders[0]) / "records.jsonl").stat().st_size <= 64 << 10
    with pytest.raises(urllib.error.HTTPError):
        post(f"{server.url}/stop_profile", {})
