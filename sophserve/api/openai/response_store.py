"""What /v1/responses keeps for its clients, in memory and bounded: answers, and conversations by a name."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar
from uuid import uuid4

from aiohttp import web

from sophserve.api.openai.event_log import EventLog
from sophserve.api.openai.kept_items import Items, size_of


class StoredResponse(NamedTuple):
    """body: as the client got it, in JSON. given: all items that led to it, without instructions; said: its own.
    log: of its stream, where it may be asked for again."""

    body: bytes
    given: Items
    said: Items
    log: EventLog | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.body) + size_of(self.given) + size_of(self.said) + (self.log.size if self.log else 0)


@dataclass
class Conversation:
    """A list of items that responses go on from, and add to."""

    metadata: dict[str, str]
    items: Items
    id: str = field(default_factory=lambda: f"conv_{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def size(self) -> int:
        """Bytes."""
        return size_of(self.items) + sum(len(name) + len(value) for name, value in self.metadata.items())


Stored = StoredResponse | Conversation
T = TypeVar("T", StoredResponse, Conversation)


class ResponseStore:
    """Holds up to `capacity` bytes; what was not used for longest is forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._stored: OrderedDict[str, tuple[Stored, int]] = OrderedDict()

    def add(self, identity: str, stored: Stored) -> bool:
        """Keep it, in place of what had this id, if it is not larger than all of the store."""
        self.delete(identity)
        size = stored.size
        if size > self._capacity or not self._capacity:
            return False
        self._stored[identity] = stored, size
        self._held += size
        while self._held > self._capacity:
            _, (_, freed) = self._stored.popitem(last=False)
            self._held -= freed
        return True

    def get(self, identity: str, kind: type[T]) -> T | None:
        """What is still there of this id and kind."""
        stored, _ = self._stored.get(identity, (None, 0))
        if not isinstance(stored, kind):
            return None
        self._stored.move_to_end(identity)
        return stored

    def delete(self, identity: str) -> bool:
        """Forget it; False if it is not there."""
        _, size = self._stored.pop(identity, (None, None))
        self._held -= size or 0
        return size is not None


STORE = web.AppKey("response_store", ResponseStore)
