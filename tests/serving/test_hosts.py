"""One model over several hosts: the answers of one, whatever happens to a rank, a host or what connects them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI

from sophserve import LLM, SamplingParams

PROMPTS = ["The quick brown fox", "人工智能正在", "x", "A server takes requests, " * 5]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)


class Leader:
    """A process of the launch beside rank 0's."""

    def __init__(self, directory: Path, options: Sequence[str], environment: dict[str, str]) -> None:
        self.command = [sys.executable, "-m", "sophserve", "--model", str(directory), *options]
        self.environment = environment
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, env=os.environ | self.environment)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


class TwoHosts:
    """A server and a leader on the loopback of this machine, each with one rank."""

    def __init__(self, server_class: type[Any], directory: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port - 1)}
        self.leader = Leader(directory, options, launch | {"RANK": "1"})
        self.server = server_class("--model", str(directory), *options, environment=launch | {"RANK": "0"})

    @property
    def processes(self) -> list[psutil.Process]:
        mains = [self.server.process.pid, self.leader.process.pid]
        alive = [psutil.Process(pid) for pid in mains if psutil.pid_exists(pid)]
        return alive + [child for process in alive for child in process.children(recursive=True)]

    def kill(self) -> None:
        for process in (self.server.process, self.leader.process):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def start_hosts(server_class: type[Any]) -> Iterator[Callable[..., TwoHosts]]:
    """`start_hosts(directory, *options)`: two hosts that are ready, killed after the test."""
    started: list[TwoHosts] = []

    def start(directory: Path, *options: str) -> TwoHosts:
        started.append(TwoHosts(server_class, directory, *options))
        started[-1].server.wait_until_ready()
        return started[-1]

    yield start
    for hosts in started:
        hosts.kill()


async def stream(url: str, prompt: str, on_chunk: Callable[[], None] = lambda: None) -> tuple[str, list[float]]:
    text, logprobs = "", []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        async for chunk in await client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=24,
            temperature=0,
            logprobs=0,
            stream=True,
            extra_body={"ignore_eos": True},
        ):
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs:
                logprobs += chunk.choices[0].logprobs.token_logprobs or []
            on_chunk()
    return text, logprobs


async def streams(url: str, disturb: Callable[[], None] | None = None) -> list[tuple[str, list[float]]]:
    """Ask for all at once; once chunks are coming in, disturb."""
    chunks = 0

    def count() -> None:
        nonlocal chunks
        chunks += 1
        if disturb and chunks == 2 * len(PROMPTS):
            disturb()

    return await asyncio.gather(*(stream(url, prompt, count) for prompt in PROMPTS))


def check(answers: list[tuple[str, list[float]]], directory: Path) -> None:
    """Against one process."""
    with LLM(str(directory)) as llm:
        results = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for (text, logprobs), result in zip(answers, results, strict=True):
        output = result.outputs[0]
        assert text == output.text
        chosen = zip(output.token_ids, output.logprobs or [], strict=True)
        assert logprobs == pytest.approx([entries[token].logprob for token, entries in chosen], abs=1e-3)


def test_two_hosts(make_checkpoint: Callable[..., Path], start_hosts: Callable[..., TwoHosts]) -> None:
    """They answer as one process, again and again with the same bits, also when a rank of the other host is killed; and
    when one is told to stop, all do."""
    directory = make_checkpoint("qwen2")
    hosts = start_hosts(directory)
    url = hosts.server.url
    answers = asyncio.run(streams(url))
    check(answers, directory)
    (lost,) = hosts.leader.workers
    assert asyncio.run(streams(url, lost.kill)) == answers
    assert lost not in hosts.leader.workers
    everyone = hosts.processes
    assert len(everyone) == 4
    hosts.leader.process.send_signal(signal.SIGTERM)
    assert hosts.leader.process.wait(30) == 0
    assert hosts.server.process.wait(30) == 0
    assert not psutil.wait_procs(everyone, timeout=5)[1]


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_host_is_waited_for(
    with_signal: int, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., TwoHosts]
) -> None:
    """Streams go on once it has been started again. A stopped leader is seen by its silence."""
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2")
    answers = asyncio.run(streams(hosts.server.url))
    lost = hosts.leader.process

    def lose() -> None:
        lost.send_signal(with_signal)
        if with_signal == signal.SIGSTOP:
            hosts.leader.environment = hosts.leader.environment  # the launcher starts it with what it had
        hosts.leader.start()

    workers = hosts.leader.workers
    assert asyncio.run(streams(hosts.server.url, lose)) == answers
    lost.kill()
    lost.wait()
    assert not psutil.wait_procs(workers, timeout=5)[1]


@pytest.mark.slow
def test_a_host_that_never_comes_back_ends_the_server(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., TwoHosts]
) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2", "--load-timeout", "6")
    everyone = hosts.processes
    hosts.leader.process.kill()
    hosts.leader.process.wait()
    assert hosts.server.process.wait(40) == 1
    assert "only 1 of 2 ranks were there after 6 s (--load-timeout)" in "".join(hosts.server.log)
    assert not psutil.wait_procs(everyone, timeout=5)[1]


@pytest.mark.slow
def test_a_server_that_never_comes_back_ends_the_hosts(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., TwoHosts]
) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2", "--load-timeout", "5")
    everyone = hosts.processes
    started = time.monotonic()
    hosts.server.process.kill()
    assert hosts.leader.process.wait(40) == 1
    assert time.monotonic() - started > 4
    assert not psutil.wait_procs(everyone, timeout=5)[1]
