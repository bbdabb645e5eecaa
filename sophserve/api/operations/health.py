"""/health, /ready, /live, /ping and /version, and why the server cannot serve right now."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.error_middleware import Handler
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record
from sophserve.version import VERSION


def unavailable(served: ServedModel) -> ApiError | None:
    """The answer to every request while the model loads, the server stops or the engine is lost."""
    if served.draining:
        return _not_ready("the server is stopping", "stopping", {"Connection": "close"})
    if served.engine.died.is_set():
        return _not_ready("the model's worker is lost", "engine_dead")
    return None if served.engine.loaded else _loading(served, "loading")


def require_ready(open_paths: Collection[str]) -> Middleware:
    """Middleware that answers 503 to all but open_paths until the model is loaded, and again once the server stops or
    the engine is lost."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            current_record.get().path not in open_paths
            and (error := unavailable(request.app[SERVED_MODEL])) is not None
        ):
            raise error
        return await handler(request)

    return middleware


async def health(request: web.Request) -> web.Response:
    """200 when the model answers at once: loaded, its worker alive and moving, and the server not stopping."""
    served = request.app[SERVED_MODEL]
    engine = served.engine
    if error := unavailable(served):
        raise error
    if not engine.ready:  # requests wait for the new worker
        raise _loading(served, "restarting")
    _check_heartbeat(served)
    return web.json_response({"status": "ok"})


async def ping(request: web.Request) -> web.Response:
    """/health without a body, as Amazon SageMaker asks for it."""
    await health(request)
    return web.Response()


async def live(request: web.Request) -> web.Response:
    """200 unless restarting the server is all that can help."""
    served = request.app[SERVED_MODEL]
    if served.engine.died.is_set():
        raise _not_ready("the model's worker is lost", "engine_dead")
    _check_heartbeat(served)
    return web.json_response({"status": "ok"})


async def version(request: web.Request) -> web.Response:
    """The version of sophserve."""
    return web.json_response({"version": VERSION})


def _check_heartbeat(served: ServedModel) -> None:
    age = served.engine.workers.heartbeat_age
    # Half of it, so that a hung worker is seen before it is restarted.
    if age > served.engine.config.step_timeout / 2:
        raise _not_ready(f"the worker has not moved for {age:.0f} s", "stalled")


def _loading(served: ServedModel, code: str) -> ApiError:
    progress = served.engine.workers.progress
    share = f" ({100 * progress.done // progress.total} %)" if progress.total else ""
    message = f"the model is not ready yet: {progress.stage}{share}; try again soon"
    details = {"stage": progress.stage, "done": progress.done, "total": progress.total}
    return _not_ready(message, code, {"Retry-After": "1"}, details)


def _not_ready(
    message: str, code: str, headers: dict[str, str] | None = None, details: dict[str, Any] | None = None
) -> ApiError:
    return ApiError(503, message, code=code, headers=headers, extra={"status": code, **(details or {})})
