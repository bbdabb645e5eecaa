"""Replicas on a cluster of Ray that is this machine: faults, updates and numbers, and no stream lost by them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("ray"), reason="needs Ray: pip install 'sophserve[ray]'"),
]

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray takes 127.0.0.1 for the machine's address in its network
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# As `sophserve ray`, which is there once this version is installed.
COMMAND = "import sys; from sophserve.ray.command import ray; sys.exit(ray(sys.argv[1:]))"
LONG = {"stream": True, "ignore_eos": True, "temperature": 1.0, "max_tokens": 300}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Cluster:
    """Ray on this machine, with one application. process: of `ray start`. url: of Ray's proxy."""

    process: subprocess.Popen[str]
    address: str
    directory: Path
    url: str

    def deploy(self, **args: Any) -> None:
        """`serve run` with a file: a new application, or another version of it. Returns when Ray has begun with it."""
        file = self.directory / "ray.yaml"
        port = int(self.url.rpartition(":")[2])
        application: dict[str, Any] = {"name": "sophserve", "route_prefix": "/", "import_path": "sophserve.ray:app"}
        application["args"] = {"model": "demo", "kv-cache-memory": "64MiB", "num-cpus": 0.1, **args}
        application["deployments"] = [{"name": "Server", "health_check_period_s": 3}]
        http = {"host": "127.0.0.1", "port": port}
        file.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        subprocess.run(
            [BIN / "serve", "run", "--address", self.address, "--non-blocking", file],
            env=ENVIRONMENT,
            check=True,
            timeout=300,
        )

    def actors(self, deployment: str = "Server") -> dict[int, psutil.Process]:
        """Those of replicas, by their process ids."""
        found = {}
        for each in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if each.name().startswith("ray::") and f":{deployment}" in " ".join(each.cmdline()):
                    found[each.pid] = each
            except psutil.Error:  # it has ended meanwhile
                continue
        return found

    async def ready(self, http: aiohttp.ClientSession, count: int) -> None:
        """Wait until the router has so many replicas, and all take requests."""
        async with asyncio.timeout(180):
            while True:
                async with http.get("/health") as answer:
                    found = await answer.json() if answer.status == 200 else {}
                if found.get("ready") == found.get("replicas") == count:
                    return
                await asyncio.sleep(0.2)


@dataclass
class Streams:
    """Streams and how they ended: "whole", or the code of the error that they ended with, in that order."""

    http: aiohttp.ClientSession
    ends: list[str] = field(default_factory=list)
    started: int = 0
    begun: int = 0
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, count: int, **fields: Any) -> None:
        for _ in range(count):
            self.started += 1
            prompt = f"Tell {self.started} of "
            task = asyncio.create_task(self._stream({"prompt": prompt, **LONG, **fields}))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _stream(self, body: dict[str, Any]) -> None:
        try:
            async with self.http.post("/v1/completions", json=body) as answer:
                lines = []
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        self.begun += not lines
                        lines.append(line[6:])
                if answer.status != 200:
                    self.ends.append(f"{answer.status}")
                elif lines[-1].strip() == b"[DONE]":
                    reasons = [choice["finish_reason"] for each in lines[:-1] for choice in json.loads(each)["choices"]]
                    self.ends.append("whole" if reasons[-1] == "length" else f"ended by {reasons[-1]}")
                else:
                    self.ends.append(json.loads(lines[-1]).get("error", {}).get("code", "torn"))
        except aiohttp.ClientError as error:
            self.ends.append(repr(error))

    async def keep(self, count: int, until: Callable[[], bool]) -> None:
        """So many at once, new ones for those that end, until the condition holds; then all are waited for."""
        while not until():
            self.start(count - len(self.running))
            await asyncio.sleep(0.05)
        await self.all()

    async def all(self) -> None:
        async with asyncio.timeout(300):
            while self.running:
                await asyncio.wait(self.running)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory, port = tmp_path_factory.mktemp("ray"), free_port()
    address = f"127.0.0.1:{port}"
    options = ["--head", "--block", f"--port={port}", "--num-cpus=4", "--object-store-memory=100000000"]
    process = subprocess.Popen(
        [BIN / "ray", "start", *options, "--include-dashboard=false", "--disable-usage-stats"],
        env=ENVIRONMENT,
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert any("Ray runtime started" in line for line in process.stdout)
        yield Cluster(process, address, directory, f"http://127.0.0.1:{free_port()}")
    finally:
        all_of_them = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in all_of_them:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(30)
        assert not psutil.wait_procs(all_of_them, timeout=30)[1]


@pytest.fixture
async def http(cluster: Cluster) -> Any:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(cluster.url, connector=connector) as session:
        yield session


async def test_a_killed_actor_ends_its_own_streams_at_once(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    cluster.deploy(replicas=3)
    await cluster.ready(http, 3)
    streams = Streams(http)
    streams.start(100)
    await streams.all()
    assert Counter(streams.ends) == {"whole": 100}
    async with http.get("/metrics") as answer:
        lines = re.findall(r'^sophserve:router_requests_total\{by="\w+",replica="(.*?)"\}', await answer.text(), re.M)
    assert len(set(lines)) == 3, "each had some"

    streams = Streams(http)
    streams.start(60, max_tokens=1500)
    running: dict[str, int] = {}
    async with asyncio.timeout(60):
        while streams.begun < 60 or sum(running.values()) < 60:
            async with http.get("/requests") as answer:
                found = (await answer.json())["replicas"]
            running = {url: len(requests["requests"]) for url, requests in found.items()}
    before = set(cluster.actors())
    pid, actor = next(iter(cluster.actors().items()))
    [server] = [each for each in actor.children() if "sophserve.ray.process" in " ".join(each.cmdline())]
    [port] = [each.laddr.port for each in server.net_connections() if each.status == psutil.CONN_LISTEN]
    [lost] = [count for url, count in running.items() if url.endswith(f":{port}")]
    children = actor.children(recursive=True)
    actor.kill()
    await streams.all()
    assert Counter(streams.ends) == {"whole": 60 - lost, "replica_lost": lost} and lost > 0
    assert streams.ends[:lost] == ["replica_lost"] * lost, "they end before any other"
    assert not psutil.wait_procs(children, timeout=20)[1], "its server ends with it"
    await cluster.ready(http, 3)  # Ray has started another
    assert len(set(cluster.actors()) - before) == 1 and pid not in cluster.actors()


async def test_a_client_that_goes_away_is_seen_by_the_engine(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    async def count() -> int:
        async with http.get("/requests") as answer:
            return sum(len(each["requests"]) for each in (await answer.json())["replicas"].values())

    cluster.deploy(replicas=3)
    await cluster.ready(http, 3)
    async with http.post("/v1/completions", json={"prompt": "x", **LONG, "max_tokens": 1900, "n": 8}) as answer:
        await answer.content.readline()
        assert await count() > 0
        answer.close()
    async with asyncio.timeout(5):  # all of it takes longer
        while await count():
            await asyncio.sleep(0.05)


async def test_a_rolling_update_loses_no_stream(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    cluster.deploy(replicas=3)
    await cluster.ready(http, 3)
    # Servers; then both they and their router; then the only one, for whose successor requests wait.
    for args in ({"replicas": 3, "seed": 1}, {"replicas": 1, "write-timeout": 70}, {"replicas": 1, "seed": 2}):
        before = set(cluster.actors())
        streams, update = Streams(http), asyncio.create_task(asyncio.to_thread(cluster.deploy, **args))

        def updated(before: set[int] = before, update: asyncio.Task[None] = update) -> bool:
            return update.done() and not before & set(cluster.actors())

        await streams.keep(30, updated)
        await update
        assert set(streams.ends) == {"whole"} and len(streams.ends) > 30, Counter(streams.ends)
        await cluster.ready(http, int(args["replicas"]))


async def test_more_and_fewer_replicas_lose_no_stream(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    delays = {"upscale-delay": 1, "downscale-delay": 2}
    cluster.deploy(replicas=1, **{"max-replicas": 3, "requests-per-replica": 8, **delays})
    await cluster.ready(http, 1)
    streams, counts = Streams(http), []

    def count() -> int:
        if not counts or counts[-1] != len(cluster.actors()):
            counts.append(len(cluster.actors()))
        return counts[-1]

    three = asyncio.create_task(cluster.ready(http, 3))
    await streams.keep(24, lambda: bool(count()) and three.done())
    await three
    async with asyncio.timeout(180):
        await streams.keep(2, lambda: count() == 1)
    assert max(counts) == 3 and counts[-1] == 1
    assert set(streams.ends) == {"whole"}, Counter(streams.ends)


async def test_the_command_finishes_streams_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    options = ["--model", "demo", "--kv-cache-memory", "64MiB", "--replicas", "2", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: value for name, value in ENVIRONMENT.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"},
    )
    assert process.stdout
    async with asyncio.timeout(180):
        while not (await process.stdout.readline()).startswith(b"ready: "):
            assert process.returncode is None
    children = psutil.Process(process.pid).children(recursive=True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        streams = Streams(http)
        streams.start(4, max_tokens=1000)
        await asyncio.sleep(1)
        process.terminate()
        await streams.all()
    assert streams.ends == ["whole"] * 4
    await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    assert not psutil.wait_procs(children, timeout=30)[1]
