"""The command `sophserve ray`: replicas on Ray Serve."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from sophserve.errors import SophserveError
from sophserve.ray.options import RayConfig, read_command

# Bytes of Ray's store of objects, through which no request passes.
_OBJECTS = 100 * 1024 * 1024


def ray(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    config, server, arguments, alone = read_command(argv)
    address = alone.get("address")
    if address is None:
        _stay_here()
    from sophserve.ray.application import NAME, build, import_serve

    serve = import_serve()
    import ray
    from ray.serve.exceptions import RayServeException

    if address is None:
        _check(arguments)
    _on_signals(_interrupt)
    try:
        _start(config) if address is None else ray.init(address, namespace="serve")
        _on_signals(_interrupt)  # again, for Ray has taken them meanwhile
        host, port = alone.get("host", "127.0.0.1"), alone.get("port", 8000)
        serve.start(http_options={"host": host, "port": port})
        serve.run(build(config, server, arguments), name=NAME, route_prefix="/")
        print(f"ready: http://{host}:{port}/v1", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except (RuntimeError, OSError, RayServeException) as error:
        raise SophserveError(f"Ray says: {str(error).strip().splitlines()[-1]}") from None
    finally:
        _on_signals(lambda *_: os._exit(130))  # those who interrupt again do not want to wait
        if ray.is_initialized():
            with suppress(RayServeException):
                serve.delete(NAME)
            if address is None:
                serve.shutdown()
            ray.shutdown()
    return 0


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _stay_here() -> None:
    """A cluster that is started here concerns nobody else. Ray reads this when it is imported: it takes 127.0.0.1 for
    the machine's address in its network, but on systems for which it has no clusters."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _check(arguments: Sequence[str]) -> None:
    """What each server would find wrong on this machine. Raises SophserveError."""
    from sophserve.checkpoint import resolve_model
    from sophserve.options import parse
    from sophserve.preflight import check
    from sophserve.text.parsers import check_parsers

    engine, server = parse(arguments)
    check_parsers(server)
    check(engine, resolve_model(engine.model))


def _start(config: RayConfig) -> None:
    """A cluster of this machine, with room for all replicas."""
    import ray

    cores, most = len(os.sched_getaffinity(0)), config.max_replicas or config.replicas
    if config.num_cpus is None:
        config.num_cpus = max(1, cores // most)
    ray.init(
        "local",
        namespace="serve",
        num_cpus=max(cores, math.ceil(config.num_cpus * most)),
        object_store_memory=_OBJECTS,
        include_dashboard=False,
    )
