"""Items of /v1/responses as they are kept, each with an id of its own, and lists of them a page at a time."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from aiohttp import web

from sophserve.api.http.body import json_response
from sophserve.api.openai.response_items import Item, encoded
from sophserve.errors import RequestError
from sophserve.json_size import JsonTooLarge, check_json

Items = dict[str, bytes]
"""The JSON of each item by its id, in order."""

_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_"}


class PageQuery(msgspec.Struct):
    """Which part of a list: up to limit entries behind the one whose id is after."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


def kept_items(given: str | list[Item], taken: Container[str] = ()) -> Items:
    """What a client sent, complete as OpenAI's schema wants it. taken: ids that others have."""
    kept: Items = {}
    for item in [Item(role="user", content=given)] if isinstance(given, str) else given:
        fields = _complete(item)
        identity = fields.get("id")
        if not identity or identity in kept or identity in taken:
            identity = fields["id"] = _PREFIXES.get(item.type, "item_") + uuid4().hex
        kept[identity] = encoded(fields)
    return kept


def items_of(kept: Items) -> list[Item]:
    """Kept items, to be read again. Raises RequestError for too many."""
    conversation = b"[%b]" % b",".join(kept.values())
    try:
        check_json(conversation)
    except JsonTooLarge as error:
        raise RequestError(f"the conversation {error}; begin a new one", "previous_response_id") from None
    return msgspec.json.decode(conversation, type=list[Item])


def size_of(kept: Items) -> int:
    """Bytes of JSON."""
    return sum(map(len, kept.values()))


def page_response(kept: Items, query: PageQuery) -> web.Response:
    """A page as OpenAI's lists are. Raises RequestError."""
    if query.after is not None and query.after not in kept:
        raise RequestError("after: there is no item of this id in the list", "after")
    ids: Iterable[str] = kept if query.order == "asc" else reversed(kept)
    if query.after is not None:
        ids = iter(ids)
        while next(ids) != query.after:
            pass
    page = list(islice(ids, query.limit + 1))
    more, page = len(page) > query.limit, page[: query.limit]
    return json_response(
        {
            "object": "list",
            "data": [msgspec.Raw(kept[identity]) for identity in page],
            "first_id": page[0] if page else "",
            "last_id": page[-1] if page else "",
            "has_more": more,
        }
    )


def _complete(item: Item) -> dict[str, Any]:
    """The fields of an item and those that its type always has."""
    fields = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
    fields["type"] = item.type
    if item.type == "message":
        parts = [{"text": item.content}] if isinstance(item.content, str) else fields.get("content", [])
        if item.role == "assistant":
            more = {"type": "output_text", "annotations": [], "logprobs": []}
        else:
            more = {"type": "input_text"}
        fields["content"] = [part | more if "text" in part else _complete_image(part) for part in parts]
    elif item.type == "reasoning":
        fields.setdefault("summary", [])
    elif item.type == "function_call":
        fields.setdefault("arguments", "{}")
    if isinstance(output := fields.get("output"), list):
        fields["output"] = [_complete_image(part) if isinstance(part, dict) else part for part in output]
    if item.type != "reasoning":
        fields.setdefault("status", "completed")
    return fields


def _complete_image(part: dict[str, Any]) -> dict[str, Any]:
    """A part that is an image, also as chat completions have it, as responses do."""
    match part:
        case {"type": "image_url" | "input_image", "image_url": {"url": url} as given}:
            detail = given.get("detail") or part.get("detail")
        case {"type": "image_url" | "input_image", "image_url": str(url)}:
            detail = part.get("detail")
        case _:
            return part
    return {"type": "input_image", "image_url": url, "detail": detail or "auto"}
