"""Start, stop and death of the real processes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SHARED_MEMORY = Path("/dev/shm")


def segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.exists() else set()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


# What comes of SIGTERM is seen below.
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(
    with_signal: int, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    before = segments()
    server = start_server(make_checkpoint("qwen2"))
    workers = server.workers
    assert len(workers) == 1
    server.client().completions.create(model="tiny", prompt="x", max_tokens=2)
    status = server.stop(with_signal)
    assert status == (-signal.SIGKILL if with_signal == signal.SIGKILL else 0), "".join(server.log)
    assert all_gone(workers)
    assert segments() <= before
    assert "Traceback" not in "".join(server.log)


def python_takes_ctrl_c(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)


OTHER_MOMENTS = [(signal.SIGTERM, 0.2), (signal.SIGKILL, 0.5), (signal.SIGINT, 1.0)]


@pytest.mark.parametrize(
    ("with_signal", "delay"),
    [
        (signal.SIGINT, 0.2),
        (signal.SIGTERM, 0.5),
        (signal.SIGKILL, 1.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_MOMENTS),
    ],
)
def test_stopped_while_it_loads(
    with_signal: int, delay: float, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2"), ready=False)
    time.sleep(delay)
    # Until Python is up, which can take longer on a busy machine, Ctrl-C is its own, and ends in a traceback.
    end = time.monotonic() + 10
    while not server.log and python_takes_ctrl_c(server.process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    workers = server.workers
    server.stop(with_signal)
    assert all_gone(workers)
    assert "Traceback" not in "".join(server.log)


def test_answers_503_with_progress_while_it_loads_and_sigterm_lets_running_streams_finish(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    before = segments()
    server = start_server(make_checkpoint("qwen2"), ready=False)
    server.wait_until_listening()
    seen = []
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/health") as answer:
                assert answer.status == 200
                break
        except urllib.error.HTTPError as error:
            assert error.code == 503
            seen.append(json.loads(error.read()))
        time.sleep(0.01)
    assert seen and all("stage" in json.dumps(each) and "error" in each for each in seen)
    workers = server.workers
    stream = server.client().completions.create(
        model="tiny", prompt="x", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    first = next(iter(stream))
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    chunks = [first, *stream]
    stopper.join()
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.returncode == 0, "".join(server.log)
    assert all_gone(workers)
    assert segments() <= before
    assert "Traceback" not in "".join(server.log)


def test_idle_processes_sleep_and_the_server_s_has_not_imported_torch(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2"))
    server.client().completions.create(model="tiny", prompt="x", max_tokens=5)
    mapped = {Path(each.path).name for each in psutil.Process(server.process.pid).memory_maps()}
    assert not [name for name in mapped if "torch" in name]
    assert [name for each in server.workers for name in (m.path for m in each.memory_maps()) if "torch" in name]
    time.sleep(1)
    processes = [psutil.Process(server.process.pid), *server.workers]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(2)
    used = sum(sum(process.cpu_times()[:2]) for process in processes) - before
    # Two per cent of two seconds; the clock ticks in hundredths.
    assert used <= 0.04
