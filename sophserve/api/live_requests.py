"""/requests: what the engine is doing for whom, and how to stop it."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from sophserve.api.body import json_response
from sophserve.api.errors import ApiError
from sophserve.api.serving import SERVING
from sophserve.engine.sequence import Sequence
from sophserve.errors import RequestAborted


async def list_requests(request: web.Request) -> web.Response:
    """Every answer that waits or is being generated, oldest first."""
    return json_response({"requests": [_state(sequence) for sequence in request.app[SERVING].engine.sequences]})


async def cancel_request(request: web.Request) -> web.Response:
    """End every answer of one request; its client gets an error of status 499."""
    identity, engine = request.match_info["id"], request.app[SERVING].engine
    found = [sequence for sequence in engine.sequences if sequence.request_id == identity]
    if not found:
        raise ApiError(404, f"no request {identity!r} is running or waiting; GET /requests lists those that are")
    for sequence in found:
        engine.abort(sequence, RequestAborted("the request was cancelled by the server's operator", "cancelled"))
    return json_response({"id": identity, "cancelled": len(found)})


def _state(sequence: Sequence) -> dict[str, Any]:
    request, timeline = sequence.request, sequence.timeline
    return {
        "id": sequence.request_id,
        "index": sequence.index,
        "state": "running" if request.blocks else "waiting",
        "prompt_tokens": len(request.prompt),
        "cached_tokens": request.cached_tokens,
        "computed_tokens": request.computed,
        "generated_tokens": len(request.output),
        "max_tokens": request.max_tokens,
        "age": round(time.monotonic() - timeline.arrived, 3),
    }
