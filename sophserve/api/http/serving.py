"""What a process that serves HTTP does besides: it listens where the options say, and stops on a signal."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import ssl

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sophserve.api.http.connections import Connections, Runner
from sophserve.api.http.listener import Listener, bind
from sophserve.errors import ConfigError


def application_runner(app: web.Application, connections: Connections) -> Runner:
    """How aiohttp is to run an application."""
    logging.getLogger("aiohttp.server").addFilter(_is_not_the_clients_mistake)
    return Runner(app, connections)


def _is_not_the_clients_mistake(record: logging.LogRecord) -> bool:
    # aiohttp logs bytes that are not HTTP with a traceback; it has answered them with 400.
    return not record.exc_info or not isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)


def listen(runner: Runner, connections: Connections, most: int, context: ssl.SSLContext | None) -> tuple[Listener, str]:
    """Bind, and return what listens and its address for users. most: connections. Raises ConfigError."""
    config = connections.config
    try:
        sockets = bind(config)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and not config.uds:
            raise ConfigError(
                f"port {config.port} is in use; stop what uses it or choose another --port", help="port"
            ) from None
        where, advice = (
            (config.uds, "--uds") if config.uds else (f"{config.host} port {config.port}", "--host and --port")
        )
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}; change {advice}") from None
    listener = Listener(runner.factory, sockets, connections, most, context)
    if config.uds:
        return listener, f"unix:{config.uds}"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return listener, f"{'https' if context else 'http'}://{host}:{listener.port}"


def stop_on_signal() -> asyncio.Event:
    """Set by SIGINT or SIGTERM; a second one ends the process at once."""
    stop = asyncio.Event()
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if interrupted:
            os._exit(130)  # a worker notices and exits as well
        interrupted = True
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop
