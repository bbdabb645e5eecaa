"""/start_profile and /stop_profile: record what the device does."""

from __future__ import annotations

from aiohttp import web

from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.body import json_response, read_body, warn_unknown
from sophserve.profile_format import ProfileOptions


async def start_profile(request: web.Request) -> web.Response:
    """Begin; the body, if there is one, has fields of ProfileOptions. Answers with the folders of the ranks."""
    options, unknown = await read_body(request, ProfileOptions, optional=True)
    folders = await request.app[SERVED_MODEL].engine.profiling.start(options)
    return json_response({"folders": list(map(str, folders))}, warn_unknown(unknown))


async def stop_profile(request: web.Request) -> web.Response:
    """End it. Answers with the folders that it has left, and with what kept it from being whole."""
    profiling = request.app[SERVED_MODEL].engine.profiling
    folders = await profiling.stop()
    return json_response({"folders": list(map(str, folders)), "problems": profiling.problems})
