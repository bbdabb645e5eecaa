"""/health and /version, and why the server cannot serve right now."""

from __future__ import annotations

from typing import Any

from aiohttp import web

import sophserve
from sophserve.api.errors import ApiError
from sophserve.api.serving import Serving


def unavailable(serving: Serving) -> ApiError | None:
    """The answer to every request while the model loads, the server stops or the engine is lost."""
    engine = serving.engine
    if serving.draining:
        return ApiError(
            503,
            "the server is stopping",
            code="stopping",
            headers={"Connection": "close"},
            extra={"status": "stopping"},
        )
    if engine.died.is_set():
        return ApiError(503, "the model's worker is lost", code="engine_dead", extra={"status": "dead"})
    if engine.ready:
        return None
    progress = engine.progress
    share = f" ({100 * progress.done // progress.total} %)" if progress.total else ""
    status: dict[str, Any] = {
        "status": "loading",
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
    }
    message = f"the model is not ready yet: {progress.stage}{share}; try again soon"
    return ApiError(503, message, code="loading", headers={"Retry-After": "1"}, extra=status)


async def health(request: web.Request) -> web.Response:
    """200 when the model can answer; while it cannot, the 503 of `unavailable` is sent before this is reached."""
    return web.json_response({"status": "ok"})


async def version(request: web.Request) -> web.Response:
    """The version of sophserve."""
    return web.json_response({"version": sophserve.__version__})
