"""Several hosts on this machine, each with a process of the launch, and what tests ask them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI

from benchmarks.networks import Network
from sophserve import LLM, SamplingParams

PROMPTS = ["The quick brown fox", "人工智能正在", "x", "A server takes requests, " * 5]
# So many that the server is far from the end when a client has seen the first ones.
TOKENS = 200
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)

Answers = list[tuple[str, list[float]]]
"""A text and its logprobs for each of PROMPTS."""


class Leader:
    """A process of the launch beside rank 0's. place: what it is started within."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], place: Callable[[], Any]) -> None:
        self.command = [sys.executable, "-m", "sophserve", *arguments]
        self.environment = environment
        self.place = place
        self.start()

    def start(self) -> None:
        with self.place():
            self.process = subprocess.Popen(self.command, env=os.environ | self.environment)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


class Hosts:
    """A server and the leaders of other hosts, each with one rank: of a network, or of the loopback of this machine."""

    def __init__(
        self, server_class: type[Any], directory: Path, *options: str, count: int = 2, network: Network | None = None
    ) -> None:
        self.network = network
        address = network.addresses[0] if network else "127.0.0.1"
        with self.on(0), socket.create_server((address, 0)) as probe:
            port = probe.getsockname()[1]
        launch = {"WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port - 1)}
        arguments = ["--model", str(directory), *options]
        self.leaders = [
            Leader(arguments, launch | {"RANK": str(rank)}, lambda rank=rank: self.on(rank)) for rank in range(1, count)
        ]
        with self.on(0):
            self.server = server_class(*arguments, environment=launch | {"RANK": "0"})

    @property
    def leader(self) -> Leader:
        return self.leaders[0]

    @property
    def processes(self) -> list[psutil.Process]:
        mains = [self.server.process.pid, *(leader.process.pid for leader in self.leaders)]
        alive = [psutil.Process(pid) for pid in mains if psutil.pid_exists(pid)]
        return alive + [child for process in alive for child in process.children(recursive=True)]

    def on(self, host: int) -> AbstractContextManager[None]:
        """What is opened and started within the block is on that host."""
        return self.network.on(host) if self.network else nullcontext()

    def ask(self, disturb: Callable[[], None] | None = None) -> Answers:
        """The answers to all prompts. Once chunks are coming in, disturb."""
        with self.on(0):
            return asyncio.run(streams(self.server.url, disturb))

    def kill(self) -> None:
        for process in (self.server.process, *(leader.process for leader in self.leaders)):
            if process.poll() is None:
                process.kill()
            process.wait()


async def stream(
    url: str, prompt: str, on_chunk: Callable[[], None] = lambda: None, model: str = "tiny"
) -> tuple[str, list[float]]:
    text, logprobs = "", []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        async for chunk in await client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=TOKENS,
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


async def streams(url: str, disturb: Callable[[], None] | None = None, model: str = "tiny") -> Answers:
    """Ask for all at once; once chunks are coming in, disturb."""
    chunks = 0

    def count() -> None:
        nonlocal chunks
        chunks += 1
        if disturb and chunks == 2 * len(PROMPTS):
            disturb()

    return await asyncio.gather(*(stream(url, prompt, count, model) for prompt in PROMPTS))


def of_one_process(directory: Path, **options: Any) -> Answers:
    """What all hosts together should answer."""
    with LLM(str(directory), **options) as llm:
        outputs = [result.outputs[0] for result in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    return [
        (
            output.text,
            [entries[token].logprob for token, entries in zip(output.token_ids, output.logprobs or [], strict=True)],
        )
        for output in outputs
    ]


def check(answers: Answers, expected: Answers) -> None:
    """The same texts, and nearly the same logprobs."""
    for (text, logprobs), (expected_text, expected_logprobs) in zip(answers, expected, strict=True):
        assert text == expected_text
        assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)


def left(network: Network, seconds: float) -> list[int]:
    """The processes that are still on its hosts after some time."""
    end = time.monotonic() + seconds
    while (found := [pid for host in range(len(network.addresses)) for pid in network.processes(host)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.1)
    return found
