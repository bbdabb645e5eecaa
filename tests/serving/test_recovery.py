"""Workers that die or hang: clients see a pause, never a lost stream."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIStatusError, AsyncOpenAI, OpenAI

Answer = tuple[str, list[float]]


def options(number: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": f"{number} A server takes requests " * (1 + number % 3),
        "max_tokens": 200,
        "temperature": 0 if number % 2 else 1,
        "seed": number,
        "logprobs": 1,
        "extra_body": {"ignore_eos": True},
    }


async def stream(url: str, number: int, on_chunk: Callable[[], None] = lambda: None) -> Answer:
    text, logprobs = "", []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        async for chunk in await client.completions.create(**options(number), stream=True):
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs:
                logprobs += chunk.choices[0].logprobs.token_logprobs or []
            on_chunk()
    return text, logprobs


async def streams(url: str, count: int, disturb: Callable[[], None] | None = None) -> list[Answer]:
    """Run all at once; once chunks are coming in, disturb."""
    chunks = 0

    def count_chunk() -> None:
        nonlocal chunks
        chunks += 1
        if disturb and chunks == 2 * count:
            disturb()

    return await asyncio.gather(*(stream(url, number, count_chunk) for number in range(count)))


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "with_signal",
    [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGSEGV, signal.SIGSTOP))],
)
def test_streams_go_on_after_the_worker_is_lost(
    with_signal: int, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2", dtype="bfloat16"), "--step-timeout", "1")
    undisturbed = asyncio.run(streams(server.url, 8))
    lost = server.workers
    assert asyncio.run(streams(server.url, 8, lambda: lost[0].send_signal(with_signal))) == undisturbed
    assert not psutil.wait_procs(lost, timeout=5)[1]
    assert len(server.workers) == 1
    assert "; restarting, " in "".join(server.log)
    assert server.stop() == 0


def test_not_ready_while_the_worker_restarts_and_new_requests_wait(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2"))
    client: OpenAI = server.client()
    expected = client.completions.create(**options(1)).choices[0].text
    assert (status_of(f"{server.url}/ready"), status_of(f"{server.url}/live")) == (200, 200)
    server.workers[0].kill()
    end = time.monotonic() + 5
    while status_of(f"{server.url}/ready") != 503:
        assert time.monotonic() < end
    assert client.completions.create(**options(1)).choices[0].text == expected
    assert status_of(f"{server.url}/ready") == 200


def test_a_hung_worker_is_not_live(make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]) -> None:
    server = start_server(make_checkpoint("qwen2"), "--step-timeout", "3")
    expected = asyncio.run(streams(server.url, 2))
    worker = server.workers[0]

    async def watch() -> list[int]:
        seen = []
        while not seen or seen[-1] != 503:
            seen.append(await asyncio.to_thread(status_of, f"{server.url}/live"))
            await asyncio.sleep(0.1)
        while seen[-1] != 200:
            seen.append(await asyncio.to_thread(status_of, f"{server.url}/live"))
            await asyncio.sleep(0.1)
        return seen

    async def both() -> list[Any]:
        async with asyncio.timeout(30):
            return await asyncio.gather(streams(server.url, 2, worker.suspend), watch())

    answers, seen = asyncio.run(both())
    assert answers == expected
    assert set(seen) == {200, 503}


def test_too_many_restarts_end_the_server(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    server = start_server(make_checkpoint("qwen2"), "--max-restarts", "1")
    server.workers[0].kill()
    server.client().completions.create(**options(0))
    server.workers[0].kill()
    assert server.process.wait(10) == 1
    server.stop()
    reason = (
        "the worker process was killed by signal 9 (see docs/troubleshooting.md#killed), and 1 restarts in 10 minutes"
    )
    assert f"{reason} are all" in "".join(server.log)


POISON = '''
import os
from model_plugins.architectures.qwen2 import Qwen2ForCausalLM
from sophserve.plugins import hookimpl


class Poisoned(Qwen2ForCausalLM):
    """Dies of one token id."""

    def __call__(self, step):
        if 500 in step.ids:
            os.abort()
        return super().__call__(step)


@hookimpl
def register_architectures(register):
    register("Poisoned", Poisoned)
'''


def test_only_the_request_that_kills_the_worker_twice_is_failed(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    """The other seven, which ran beside it when the worker died, go on."""
    source = make_checkpoint("qwen2")
    model, plugin = tmp_path / "model", tmp_path / "plugin"
    model.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (model / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["Poisoned"]}
    (model / "config.json").write_text(json.dumps(config))
    information = plugin / "poisoned-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: poisoned\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[sophserve]\npoisoned = poisoned\n")
    (plugin / "poisoned.py").write_text(POISON)
    path = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")]))
    server = start_server(model, environment={"PYTHONPATH": path})
    # The id itself must not come up in the other answers.
    bias = {"logit_bias": {"500": -100}}

    async def answer(number: int) -> str:
        request = options(number) | {"extra_body": {"ignore_eos": True, **bias}}
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return (await client.completions.create(**request)).choices[0].text

    async def poison() -> APIStatusError:
        await asyncio.sleep(0.05)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(APIStatusError) as caught:
                await client.completions.create(model="tiny", prompt=[1, 2, 500])
            return caught.value

    async def everyone(*more: Any) -> list[Any]:
        return await asyncio.gather(*(answer(number) for number in range(7)), *more)

    undisturbed = asyncio.run(everyone())
    *answers, error = asyncio.run(everyone(poison()))
    assert answers == undisturbed
    assert error.status_code == 500 and "twice" in str(error)
    assert server.client().completions.create(**options(0)).choices[0].text


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_again_and_again_under_load(
    seconds: int, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    """Nothing is lost and nothing leaks: processes, shared memory, file descriptors."""
    server = start_server(make_checkpoint("qwen2"), "--max-restarts", "1000", "--tensor-parallel-size", "2")
    process = psutil.Process(server.process.pid)
    undisturbed = asyncio.run(streams(server.url, 4))
    segments = {path.name for path in Path("/dev/shm").iterdir()}
    descriptors = process.num_fds()
    end = time.monotonic() + seconds
    kills = 0

    async def kill_now_and_then() -> None:
        nonlocal kills
        while time.monotonic() < end:
            await asyncio.sleep(3)
            workers = server.workers
            if len(workers) == 2:
                workers[kills % 2].kill()
                kills += 1

    async def load() -> None:
        killer = asyncio.create_task(kill_now_and_then())
        while not killer.done():
            assert await asyncio.gather(*(stream(server.url, number) for number in range(4))) == undisturbed
        await killer

    asyncio.run(load())
    assert asyncio.run(streams(server.url, 4)) == undisturbed
    assert kills >= seconds / 6
    assert len(server.workers) == 2
    assert {path.name for path in Path("/dev/shm").iterdir()} <= segments
    # Connections of clients that have gone may take a moment to be closed.
    deadline = time.monotonic() + 5
    while process.num_fds() > descriptors + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.num_fds() <= descriptors + 2
    assert server.stop() == 0
