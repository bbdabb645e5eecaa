"""The router's life: listen, look after the replicas, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvloop

from sophserve.api.http.budget import give_freed_memory_back
from sophserve.api.http.connections import Connections
from sophserve.api.http.listener import Listener, connection_limit, raise_descriptor_limit
from sophserve.api.http.serving import application_runner, listen, stop_on_signal
from sophserve.api.http.tls import renew, ssl_context
from sophserve.config import ServerConfig
from sophserve.route.application import create_app
from sophserve.route.replicas import Replicas, addresses_of
from sophserve.route.router import Router

log = logging.getLogger(__name__)


def run(urls: Sequence[str], name: str | None, config: ServerConfig, started: float) -> None:
    """Route until SIGINT or SIGTERM. started is the time.monotonic() at which the process began. Raises SophserveError
    if it cannot listen."""
    raise_descriptor_limit()
    give_freed_memory_back()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(urls, name, config, started))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the loop leaves Python's own, which ends in a traceback


async def _serve(urls: Sequence[str], name: str | None, config: ServerConfig, started: float) -> None:
    stop = stop_on_signal()
    router = Router(Replicas(urls, partial(addresses_of, name) if name else None), Connections(config))
    async with listening(router) as (listener, address):
        gc.freeze()
        log.info(
            "routing from %s to %s, in %.1f s",
            address,
            ", ".join([*urls, *filter(None, [name])]),
            time.monotonic() - started,
        )
        await stop.wait()
        log.info(
            "stopping: running requests have %g s to finish; interrupt again to exit at once", config.drain_timeout
        )
        listener.close()
        await router.drain(config.drain_timeout)


@asynccontextmanager
async def listening(router: Router) -> AsyncIterator[tuple[Listener, str]]:
    """The router takes requests at its address within this context. Raises ConfigError if it cannot listen."""
    config = router.connections.config
    runner = application_runner(create_app(router), router.connections)
    background: list[asyncio.Task[None]] = []
    listener = None
    try:
        await runner.setup()
        context = ssl_context(config)
        # Each request has a connection to its client and one to its replica.
        most = connection_limit(2 * config.max_connections, 0) // 2
        listener, address = listen(runner, router.connections, most, context)
        background.append(asyncio.create_task(router.replicas.watch()))
        if context:
            background.append(asyncio.create_task(renew(context, config)))
        yield listener, address
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if listener:
            listener.close()
        await runner.cleanup()
        await router.replicas.close()
        if config.uds and listener:
            Path(config.uds).unlink(missing_ok=True)
