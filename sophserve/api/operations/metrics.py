"""/metrics and /reset_prefix_cache: what operators see and do."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sophserve.api.generation.served_model import SERVED_MODEL


async def metrics(request: web.Request) -> web.Response:
    """The engine's metrics and those of connections in Prometheus' text format."""
    served = request.app[SERVED_MODEL]
    text = generate_latest(served.engine.metrics.registry) + generate_latest(served.connections.registry)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def reset_prefix_cache(request: web.Request) -> web.Response:
    """Forget every prompt that no request is using."""
    request.app[SERVED_MODEL].engine.reset_prefix_cache()
    return web.json_response({"status": "ok"})
