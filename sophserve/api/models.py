"""/v1/models."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sophserve.api.serving import SERVING, Serving


async def list_models(request: web.Request) -> web.Response:
    """Every name of the model."""
    serving = request.app[SERVING]
    return web.json_response({"object": "list", "data": [_model(serving, name) for name in serving.model_names]})


async def get_model(request: web.Request) -> web.Response:
    """One name of the model."""
    serving = request.app[SERVING]
    return web.json_response(_model(serving, serving.check_model(request.match_info["name"])))


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "sophserve",
        "max_model_len": serving.engine.info.max_model_len,
    }
