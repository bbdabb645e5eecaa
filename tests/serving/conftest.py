"""Starts the real command as a user would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from openai import OpenAI


class Server:
    """`sophserve` in a process of its own, on a free port. Its log goes to `log`."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self.log: list[str] = []
        self._address = threading.Event()
        self._ready = threading.Event()
        self.url = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sophserve", "--port", "0", "--served-model-name", "tiny", *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"http://localhost:\d+", line):
                self.url = match.group()
                self._address.set()
            if "ready: " in line:
                self._ready.set()
        self._address.set()
        self._ready.set()

    def wait_until_listening(self) -> None:
        assert self._address.wait(20) and self.url, "".join(self.log)

    def wait_until_ready(self) -> None:
        assert self._ready.wait(60) and self.process.poll() is None, "".join(self.log)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self, with_signal: int = signal.SIGTERM, timeout: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        status = self.process.wait(timeout)
        self._reader.join(5)
        return status


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """`start_server(directory, *options)`: a server that is ready, stopped after the test."""
    servers = []

    def start(directory: Path, *options: str, ready: bool = True, **more: dict[str, str]) -> Server:
        server = Server("--model", str(directory), *options, **more)
        servers.append(server)
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
