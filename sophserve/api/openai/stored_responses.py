"""/v1/responses/{id}: responses that are stored or still being made."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from sophserve.api.http.body import json_response, read_query
from sophserve.api.http.errors import ApiError
from sophserve.api.http.event_stream import send_events
from sophserve.api.http.json_pieces import respond_json
from sophserve.api.openai.background import BACKGROUND, BackgroundResponse
from sophserve.api.openai.kept_items import PageQuery, page_response
from sophserve.api.openai.response_store import STORE, StoredResponse
from sophserve.errors import RequestError


class ResponseQuery(msgspec.Struct):
    """stream: as events, those behind the one whose sequence number is starting_after."""

    stream: bool = False
    starting_after: Annotated[int, msgspec.Meta(ge=-1)] = -1


async def get_response(request: web.Request) -> web.StreamResponse:
    """A response, or the events of one in the background from any place on."""
    query = read_query(request, ResponseQuery)
    found = _found(request)
    if not query.stream:
        return await _whole(request, found)
    if not found.log:
        raise RequestError("only a response that was made with background and stream can be streamed again", "stream")
    return await send_events(request, found.log.follow(query.starting_after + 1))


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response, and end it if it is being made."""
    found = _found(request)
    if isinstance(found, BackgroundResponse):
        await found.cancel()
    identity = request.match_info["id"]
    request.app[STORE].delete(identity)
    return json_response({"id": identity, "object": "response", "deleted": True})


async def cancel_response(request: web.Request) -> web.StreamResponse:
    """End a response in the background; one that has ended stays as it is."""
    found = _found(request)
    if isinstance(found, BackgroundResponse):
        await found.cancel()
        return await respond_json(request, found.writer.whole())
    if not msgspec.json.decode(found.body, type=_Made).background:
        raise RequestError("only a response that was made with background can be cancelled; close the connection")
    return await _whole(request, found)


async def list_input_items(request: web.Request) -> web.Response:
    """What a response answers, with all that came before it in the conversation."""
    query = read_query(request, PageQuery)
    return page_response(_found(request).given, query)


class _Made(msgspec.Struct):
    background: bool


def _found(request: web.Request) -> BackgroundResponse | StoredResponse:
    identity = request.match_info["id"]
    found = request.app[BACKGROUND].get(identity) or request.app[STORE].get(identity, StoredResponse)
    if found is None:
        raise ApiError(404, f"there is no response {identity!r}; it was not stored, or is forgotten", code="not_found")
    return found


async def _whole(request: web.Request, found: BackgroundResponse | StoredResponse) -> web.StreamResponse:
    if isinstance(found, BackgroundResponse):
        return await respond_json(request, found.writer.whole())
    return web.Response(body=found.body, content_type="application/json")
