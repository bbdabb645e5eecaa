"""The HTTP server beside vLLM's: `http_server.py --models DIRECTORY... --streams 1,16,64`.

One asyncio client keeps so many streams of /v1/completions open at once, for three requests each: greedy answers of
fixed length to prompts that no cache knows, by one server after the other. Client, server and worker share the machine.
The first token is waited for from when a request is sent; a stream's pace is the time between its tokens. vLLM is
installed as compare.py does it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from aiohttp import ClientSession, ClientTimeout, TCPConnector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from benchmarks.peers import setup, vllm_api
from benchmarks.startup import follow, free_port
from device.cpus import thread_count

PROMPT, TOKENS = 32, 64


@dataclass(frozen=True)
class Load:
    """What one run measured; times in seconds, memory in MiB of all of the server's processes."""

    streams: int
    seconds: float
    requests: int
    firsts: list[float]
    paces: list[float]
    memory: float

    def cells(self) -> list[str]:
        """Those of a table's row."""
        longest, usual = max(self.firsts), median(self.firsts)
        return [
            f"{self.requests / self.seconds:.1f}",
            f"{self.requests * TOKENS / self.seconds:.0f}",
            f"{1000 * usual:.0f}",
            f"{1000 * longest:.0f} ({longest / usual:.1f})",
            f"{1000 * median(self.paces):.1f}",
            f"{self.memory:.0f}",
        ]


async def ask(session: ClientSession, model: str) -> tuple[float, float]:
    """One stream: seconds to the first token, and from token to token after it."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": [random.randrange(300, 1000) for _ in range(PROMPT)],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, usage = time.perf_counter(), 0.0, b""
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                usage = line
    assert json.loads(usage[6:])["usage"]["completion_tokens"] == TOKENS, usage
    return first - start, (time.perf_counter() - first) / (TOKENS - 1)


async def load(url: str, model: str, streams: int, requests: int) -> tuple[float, list[tuple[float, float]]]:
    """Seconds for so many requests, `streams` of them at once, and what each one measured."""
    found = []
    left = requests

    async def client(session: ClientSession) -> None:
        nonlocal left
        while left:
            left -= 1
            found.append(await ask(session, model))

    async with ClientSession(url, connector=TCPConnector(limit=0), timeout=ClientTimeout(None)) as session:
        await ask(session, model)
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(streams)))
        return time.perf_counter() - start, found


@contextlib.contextmanager
def served(system: str, model: Path, peers: Path, seqs: int) -> Iterator[tuple[str, psutil.Process]]:
    """A running server's URL and process."""
    port = free_port()
    options = ["--port", str(port), "--max-model-len", "1024", "--max-num-seqs", str(seqs), "--served-model-name", "m"]
    environment = dict(os.environ)
    if system == "sophserve":
        command = [sys.executable, "-m", "sophserve", "--model", str(model), "--kv-cache-memory", "2GiB"]
        command += ["--speculation", "off"]
    else:
        environment |= vllm_api.environment(sorted(os.sched_getaffinity(0))[: thread_count()])
        command = [str(setup.vllm_python(peers)), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        options += ["--dtype", "bfloat16", "--disable-log-stats"]
    log = peers / f"{system}_server.log"
    with log.open("w") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file, env=environment)
    try:
        follow(process, port, time.monotonic())
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(url: str, process: psutil.Process, streams: int, requests: int) -> Load:
    """One row's figures."""
    seconds, found = asyncio.run(load(url, "m", streams, requests))
    tree = [process, *process.children(recursive=True)]
    memory = sum(each.memory_info().rss for each in tree) / 2**20
    return Load(streams, seconds, len(found), [first for first, _ in found], [pace for _, pace in found], memory)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sophserve-peers"
    numbers = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="checkpoints; see make_checkpoint.py")
    parser.add_argument("--streams", type=numbers, default=[1, 16, 64], help="open at once (default: 1,16,64)")
    parser.add_argument("--systems", default="sophserve,vllm", help="(default: sophserve,vllm)")
    parser.add_argument("--peers-dir", type=Path, default=cache, help=f"where vLLM is installed (default: {cache})")
    options = parser.parse_args()
    peers = options.peers_dir.expanduser().resolve()
    peers.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.date.today()}, {cpu_model()}, commit {commit()}, {PROMPT} tokens in, {TOKENS} out\n")
    head = ["checkpoint", "streams", "server", "requests/s", "tokens/s", "first token, ms", "longest (of median)"]
    head += ["pace, ms", "memory, MiB"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for model in options.models:
        for system in options.systems.split(","):
            with served(system, model.resolve(), peers, max(options.streams)) as (url, process):
                for streams in options.streams:
                    found = measure(url, process, streams, max(16, 3 * streams))
                    print(f"| {model.name} | {streams} | {system} | {' | '.join(found.cells())} |", flush=True)


if __name__ == "__main__":
    main()
