"""/v1/conversations: OpenAI's conversations (https://platform.openai.com/docs/api-reference/conversations), which
responses go on from and add to."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from sophserve.api.generation.chat_prompt import source_of
from sophserve.api.generation.content import image_parts
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.body import json_response, read_body, read_query, warn_unknown
from sophserve.api.http.errors import ApiError
from sophserve.api.openai.kept_items import Items, PageQuery, kept_items, page_response
from sophserve.api.openai.response_items import Item, conversation_of
from sophserve.api.openai.response_store import STORE, Conversation, ResponseStore

Metadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]
_Added = Annotated[list[Item], msgspec.Meta(max_length=20)]


class ConversationBody(msgspec.Struct):
    """A new conversation."""

    metadata: Metadata | None = None
    items: _Added | None = None


class MetadataBody(msgspec.Struct):
    """What replaces the metadata."""

    metadata: Metadata | None


class ItemsBody(msgspec.Struct):
    """Items to add."""

    items: _Added


async def create_conversation(request: web.Request) -> web.Response:
    """Begin a conversation, with items or without."""
    body, unknown = await read_body(request, ConversationBody, optional=True)
    conversation = Conversation(body.metadata or {}, await _checked(request, body.items or [], {}))
    _store(request, conversation)
    return json_response(_described(conversation), warn_unknown(unknown))


async def get_conversation(request: web.Request) -> web.Response:
    """A conversation, without its items."""
    return json_response(_described(_conversation(request)))


async def update_conversation(request: web.Request) -> web.Response:
    """Replace the metadata of a conversation."""
    body, unknown = await read_body(request, MetadataBody)
    conversation = _conversation(request)
    conversation.metadata = body.metadata or {}
    _store(request, conversation)
    return json_response(_described(conversation), warn_unknown(unknown))


async def delete_conversation(request: web.Request) -> web.Response:
    """Forget a conversation."""
    conversation = _conversation(request)
    request.app[STORE].delete(conversation.id)
    return json_response({"id": conversation.id, "object": "conversation.deleted", "deleted": True})


async def list_items(request: web.Request) -> web.Response:
    """The items of a conversation."""
    return page_response(_conversation(request).items, read_query(request, PageQuery))


async def add_items(request: web.Request) -> web.Response:
    """Add items at the end of a conversation."""
    body, _ = await read_body(request, ItemsBody)
    conversation = _conversation(request)
    added = await _checked(request, body.items, conversation.items)
    conversation.items |= added
    _store(request, conversation)
    return page_response(added, PageQuery(order="asc"))


async def get_item(request: web.Request) -> web.Response:
    """One item of a conversation."""
    conversation, identity = _conversation(request), request.match_info["item"]
    if identity not in conversation.items:
        raise _no_item(identity)
    return web.Response(body=conversation.items[identity], content_type="application/json")


async def delete_item(request: web.Request) -> web.Response:
    """Take an item out of a conversation."""
    conversation, identity = _conversation(request), request.match_info["item"]
    if conversation.items.pop(identity, None) is None:
        raise _no_item(identity)
    _store(request, conversation)
    return json_response(_described(conversation))


def find_conversation(store: ResponseStore, identity: str) -> Conversation:
    """One that is stored. Raises ApiError."""
    found = store.get(identity, Conversation)
    if found is None:
        raise ApiError(404, f"there is no conversation {identity!r}, or it is forgotten", code="not_found")
    return found


def _conversation(request: web.Request) -> Conversation:
    return find_conversation(request.app[STORE], request.match_info["id"])


async def _checked(request: web.Request, items: list[Item], before: Items) -> Items:
    """Items as they are kept. Raises RequestError for some that no response could go on from."""

    served = request.app[SERVED_MODEL]

    def work() -> Items:
        for message in conversation_of(items, "items"):
            for part in image_parts(message.content):
                source_of(part, served)
        return kept_items(items, before)

    return await served.texts.run(work)


def _store(request: web.Request, conversation: Conversation) -> None:
    if not request.app[STORE].add(conversation.id, conversation):
        raise ApiError(
            507, "the conversation is larger than what the server keeps (--response-store-memory)", code="too_large"
        )


def _described(conversation: Conversation) -> dict[str, object]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created,
        "metadata": conversation.metadata,
    }


def _no_item(identity: str) -> ApiError:
    return ApiError(404, f"there is no item {identity!r} in this conversation", code="not_found")
