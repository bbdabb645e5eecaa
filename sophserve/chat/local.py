"""A model in this process, behind the server's own application on a private socket: one path for every answer."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from sophserve.api.embedded import embedded
from sophserve.config import EngineConfig, ServerConfig


@asynccontextmanager
async def local_model(config: EngineConfig) -> AsyncIterator[Path]:
    """Load a model, with the progress on a terminal, and give the socket where it answers. Raises SophserveError."""
    options = ServerConfig(ui=False)
    options.api_key = []  # one in the environment is for other servers; the socket's folder is the reader's own
    with tempfile.TemporaryDirectory(prefix="sophserve-") as folder:
        async with embedded(config, options) as runner:
            path = Path(folder) / "socket"
            await web.UnixSite(runner, str(path)).start()
            yield path
