"""A model in this process, behind the server's own application on a private socket: one path for every answer."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from sophserve.config import EngineConfig, ServerConfig


@asynccontextmanager
async def local_model(config: EngineConfig) -> AsyncIterator[Path]:
    """Load a model, with the progress on a terminal, and give the socket where it answers. Raises SophserveError."""
    from sophserve.checkpoint import read_config, resolve_model
    from sophserve.engine.engine import Engine

    directory = resolve_model(config.model)
    read_config(directory)
    engine = Engine(config, directory)
    engine.start_worker()
    from sophserve.api.generation.served_model import ServedModel
    from sophserve.api.startup import load, make_runner

    options = ServerConfig(ui=False)
    options.api_key = []  # one in the environment is for other servers; the socket's folder is the reader's own
    served = ServedModel(engine, options)
    runner = make_runner(served)
    try:
        with tempfile.TemporaryDirectory(prefix="sophserve-") as folder:
            await runner.setup()
            await load(served)
            path = Path(folder) / "socket"
            await web.UnixSite(runner, str(path)).start()
            yield path
    finally:
        await runner.cleanup()
        await engine.close()
        served.texts.close()
