"""The actor of a replica: it starts a server, says where it is and how it does, and stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys

import aiohttp

from sophserve.http_client import key_header
from sophserve.options import parse

log = logging.getLogger(__name__)

# Seconds between two looks at a server that loads, and for which it may not answer one.
_LOADING, _PATIENCE = 0.2, 10.0
_REQUESTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")


class Server:
    """Ray Serve's callable. argv: of the server's command line. Made, the server is ready. Raises RuntimeError if it
    cannot start."""

    async def __init__(self, argv: list[str]) -> None:  # type: ignore[misc]  # Ray awaits it
        from ray.util import get_node_ip_address

        # The port is kept as long as this socket, so that no other program gets it before the server has it.
        host = get_node_ip_address()
        self._reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((host, 0))
        port = self._reserved.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = parse(argv)[1]
        environment = dict(os.environ)
        if config.api_key_file and not config.api_key:  # a file need not have the keys themselves
            config.api_key = [secrets.token_hex()]
            environment["SOPHSERVE_API_KEY"] = config.api_key[0]
        key = config.api_key[0] if config.api_key else None
        self._session = aiohttp.ClientSession(
            self.url, headers=key_header(key), timeout=aiohttp.ClientTimeout(total=_PATIENCE)
        )
        self._stopping = self._ready = False
        self._last_line = ""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sophserve.ray.process", str(os.getpid())),
            *(*argv, "--host", host, "--port", str(port)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._watching = asyncio.create_task(self._watch())
        while not await self._answers("/health"):
            if self._watching.done():
                raise RuntimeError(self._last_line or f"the server ended with status {self._process.returncode}")
            await asyncio.sleep(_LOADING)
        self._ready = True

    async def _watch(self) -> None:
        """Pass its log on, and end with it: Ray then starts another replica at once."""
        assert self._process.stderr
        async for line in self._process.stderr:
            os.write(2, line)
            self._last_line = line.decode(errors="replace").strip()
        status = await self._process.wait()
        if self._ready and not self._stopping:
            log.error("the server ended with status %s: %s", status, self._last_line)
            os._exit(1)

    async def _answers(self, path: str) -> bool:
        try:
            async with self._session.get(path) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def address(self) -> str:
        """For routers."""
        return self.url

    async def check_health(self) -> None:
        """For Ray. Raises RuntimeError."""
        if not await self._answers("/live"):
            raise RuntimeError(f"the server at {self.url} does not answer /live")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For sophserve.ray.scaling: requests that run and wait."""
        async with self._session.get("/metrics") as answer:
            answer.raise_for_status()
            lines = (await answer.text()).splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(_REQUESTS)]
        return {"requests": sum(values)}

    async def __del__(self) -> None:
        """Ray's last word to a replica: the server finishes its requests, for its --drain-timeout."""
        self._stopping = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await self._watching
        await self._session.close()
        self._reserved.close()
