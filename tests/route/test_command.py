"""The command `sophserve route`, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import pytest

from sophserve.errors import ConfigError
from sophserve.route.command import _addresses, route
from tests.route.conftest import EVENTS, StartCluster

SCRIPT = """
import sys
from sophserve.route.command import route
code = route(sys.argv[1:])
print(sorted({"torch", "tokenizers", "jinja2", "llguidance"} & set(sys.modules)))
sys.exit(code)
"""


async def test_it_routes_and_finishes_streams_when_stopped(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    options = ["--replica", replica.url, "--port", "0", "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout and process.stderr
    lines: list[dict[str, Any]] = []
    while not any("is ready" in line["message"] for line in lines):
        lines.append(json.loads(await asyncio.wait_for(process.stderr.readline(), 60)))
    [address] = [line["message"].split()[2].rstrip(",") for line in lines if line["message"].startswith("routing")]
    replica.gate.clear()
    async with cluster.http.post(f"{address}/v1/chat/completions", json={"stream": True}) as answer:
        await answer.content.readany()
        process.send_signal(signal.SIGTERM)
        while "stopping" not in lines[-1]["message"]:
            lines.append(json.loads(await asyncio.wait_for(process.stderr.readline(), 60)))
        replica.gate.set()
        assert await answer.read() == b"".join(EVENTS[1:])
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert output.decode().strip() == "[]", "a router needs nothing of models"
    assert '"replica": "' + replica.url in errors.decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give the servers to route to"),
        (["--replica", "localhost:1", "http://localhost:1/v1"], "given twice"),
        (["--replica", "8000"], "--replica must look like"),
        (["--replicas-of", "https://replicas"], "use http://"),
        (["--replica", "localhost:1", "--port", "99999"], "--port must be"),
    ],
)
def test_what_cannot_work_is_said(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        route(options)


def test_addresses_are_completed() -> None:
    assert _addresses(["one:8000", "https://two/v1"], "replicas:8000") == (
        ["http://one:8000", "https://two"],
        "http://replicas:8000",
    )
