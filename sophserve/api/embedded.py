"""The application in a process that is no server: over a model that is loaded for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sophserve.api.http.connections import Runner
from sophserve.checkpoint import resolve_model
from sophserve.config import EngineConfig, ServerConfig
from sophserve.preflight import check


@asynccontextmanager
async def embedded(config: EngineConfig, options: ServerConfig) -> AsyncIterator[Runner]:
    """Load a model, with the progress on a terminal, behind an application that does not listen. Raises
    SophserveError."""
    from sophserve.engine.engine import Engine

    directory = resolve_model(config.model)
    check(config, directory)
    engine = Engine(config, directory)
    engine.start_worker()
    # The worker takes seconds to start; what the application needs is imported meanwhile.
    from sophserve.api.generation.served_model import ServedModel
    from sophserve.api.startup import load, make_runner

    served = ServedModel(engine, options)
    runner = make_runner(served)
    try:
        await runner.setup()
        await load(served)
        yield runner
    finally:
        await runner.cleanup()
        await engine.close()
        await served.close()
