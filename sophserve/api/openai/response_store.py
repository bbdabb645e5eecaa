"""Answers of /v1/responses that clients may fetch or continue, in memory and bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec
from aiohttp import web

from sophserve.api.generation.request_bodies import Message
from sophserve.errors import RequestError
from sophserve.text.json_size import JsonTooLarge, check_json


class StoredResponse(NamedTuple):
    """Both as JSON. body: as the client got it. conversation: all messages that led to it and its own, without
    instructions."""

    body: bytes
    conversation: bytes


def joined(first: bytes, second: bytes) -> bytes:
    """Two arrays in JSON as one."""
    return second if first == b"[]" else first if second == b"[]" else first[:-1] + b"," + second[1:]


def messages_of(conversation: bytes) -> list[Message]:
    """The messages of a conversation. Raises RequestError for one that has grown too long."""
    try:
        check_json(conversation)
    except JsonTooLarge as error:
        raise RequestError(f"the conversation {error}; begin a new one", "previous_response_id") from None
    return msgspec.json.decode(conversation, type=list[Message])


class ResponseStore:
    """Holds up to `capacity` bytes; the longest unused responses are forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def add(self, identity: str, response: StoredResponse) -> None:
        """Keep a response, if it is not larger than all of the store."""
        if _size(response) > self._capacity:
            return
        self._responses[identity] = response
        self._held += _size(response)
        while self._held > self._capacity:
            _, oldest = self._responses.popitem(last=False)
            self._held -= _size(oldest)

    def get(self, identity: str) -> StoredResponse | None:
        """A response that is still there."""
        response = self._responses.get(identity)
        if response is not None:
            self._responses.move_to_end(identity)
        return response

    def delete(self, identity: str) -> bool:
        """Forget a response; False if it is not there."""
        response = self._responses.pop(identity, None)
        if response is not None:
            self._held -= _size(response)
        return response is not None


RESPONSES = web.AppKey("responses", ResponseStore)


def _size(response: StoredResponse) -> int:
    return len(response.body) + len(response.conversation)
