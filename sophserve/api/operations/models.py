"""/v1/models, in the form of OpenAI's API, or of Anthropic's for its clients (their requests name its version)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from sophserve.api.anthropic.error_envelope import speaks_anthropic
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.errors import RequestError
from sophserve.media.limits import media_limits

_LONGEST_PAGE = 1000


async def list_models(request: web.Request) -> web.Response:
    """Every name of the model."""
    served = request.app[SERVED_MODEL]
    if speaks_anthropic(request):
        return web.json_response(_page(served, request.query))
    return web.json_response({"object": "list", "data": [_model(served, name) for name in served.model_names]})


async def get_model(request: web.Request) -> web.Response:
    """One name of the model."""
    served = request.app[SERVED_MODEL]
    name = served.check_model(request.match_info["name"])
    return web.json_response((_anthropic_model if speaks_anthropic(request) else _model)(served, name))


def _page(served: ServedModel, query: Mapping[str, str]) -> dict[str, Any]:
    """So many names after one, or before one. Raises RequestError."""
    names, limit = served.model_names, query.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _LONGEST_PAGE:
        raise RequestError(f"limit must be between 1 and {_LONGEST_PAGE}, got {limit[:20]!r}", "limit")
    for cursor in ("after_id", "before_id"):
        if (name := query.get(cursor)) is not None:
            place = names.index(served.check_model(name))
            names = names[place + 1 :] if cursor == "after_id" else names[:place]
    page = names[-int(limit) :] if "before_id" in query else names[: int(limit)]
    return {
        "data": [_anthropic_model(served, name) for name in page],
        "has_more": len(page) < len(names),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _anthropic_model(served: ServedModel, name: str) -> dict[str, Any]:
    longest = served.engine.info.max_model_len
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "capabilities": None,
        "max_input_tokens": longest,
        "max_tokens": longest,
    }


def _model(served: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "sophserve",
        "max_model_len": served.engine.info.max_model_len,
        "architecture": {"input_modalities": ["text", "image"] if _takes_images(served) else ["text"]},
    }


def _takes_images(served: ServedModel) -> bool:
    most = media_limits(served.engine.config, served.config).images
    return served.engine.info.encoder is not None and most > 0
