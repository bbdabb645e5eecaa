"""Answers of /v1/responses that clients may fetch or continue, in memory and bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from sophserve.api.requests import Message


class StoredResponse(msgspec.Struct):
    """body: as the client got it. conversation: all messages that led to it and its own, without instructions."""

    body: dict[str, Any]
    conversation: list[Message]


class ResponseStore:
    """Holds up to `capacity` bytes; the longest unused responses are forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._responses: OrderedDict[str, bytes] = OrderedDict()

    def add(self, identity: str, response: StoredResponse) -> None:
        """Keep a response, if it is not larger than all of the store."""
        data = msgspec.json.encode(response)  # which knows numbers of any size, as MessagePack does not
        if len(data) > self._capacity:
            return
        self._responses[identity] = data
        self._held += len(data)
        while self._held > self._capacity:
            _, oldest = self._responses.popitem(last=False)
            self._held -= len(oldest)

    def get(self, identity: str) -> StoredResponse | None:
        """A response that is still there."""
        data = self._responses.get(identity)
        if data is None:
            return None
        self._responses.move_to_end(identity)
        return msgspec.json.decode(data, type=StoredResponse)

    def delete(self, identity: str) -> bool:
        """Forget a response; False if it is not there."""
        data = self._responses.pop(identity, None)
        self._held -= len(data or b"")
        return data is not None
