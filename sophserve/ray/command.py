"""The command `sophserve ray`: replicas on Ray Serve."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from sophserve.ray.options import RayConfig, read_command

# Bytes of Ray's store of objects, through which no request passes.
_OBJECTS = 100 * 1024 * 1024


def ray(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    config, server, arguments, alone = read_command(argv)
    from sophserve.ray.application import NAME, build, import_serve

    serve = import_serve()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    own = _start_ray(config, alone.get("address"))
    host, port = alone.get("host", "127.0.0.1"), alone.get("port", 8000)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(build(config, server, arguments), name=NAME, route_prefix="/")
        print(f"ready: http://{host}:{port}/v1", flush=True)
        stop.wait()
    finally:
        serve.delete(NAME)
        if own:
            _stop_ray(serve)
    return 0


def _start_ray(config: RayConfig, address: str | None) -> bool:
    """Join the cluster at an address, or start one; whether it was started."""
    import ray

    if address is not None:
        ray.init(address=address, namespace="serve", log_to_driver=False)
        return False
    cores = len(os.sched_getaffinity(0))
    if config.num_cpus is None:
        config.num_cpus = max(1, cores // (config.max_replicas or config.replicas))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        namespace="serve",
        num_cpus=max(cores, int(config.num_cpus * (config.max_replicas or config.replicas) + 1)),
        object_store_memory=_OBJECTS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
    )
    return True


def _stop_ray(serve: Any) -> None:
    import ray

    serve.shutdown()
    ray.shutdown()
