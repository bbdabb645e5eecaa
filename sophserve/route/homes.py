"""Where what servers keep for clients is: each has files, batches, responses and conversations of its own."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from urllib.parse import quote

import aiohttp
from aiohttp import web

from sophserve.api.http.errors import ApiError
from sophserve.route.headers import to_replica
from sophserve.route.replicas import Replica, Replicas

KEPT = re.compile(
    r"/v1/(?:responses|conversations|files|batches)/(?!input_tokens$)([^/]+)|/requests/([^/]+)(?:/cancel)?$"
)
"""The path of something kept, and its id."""
CREATES = frozenset({"/v1/responses", "/v1/conversations", "/v1/files", "/v1/batches"})
"""A POST to these makes something that is kept."""
OWNED = frozenset({"/v1/files", "/v1/batches"})
"""What one client keeps is at one replica, so that it can be listed."""
_NAMED = {"previous_response_id": "/v1/responses/", "conversation": "/v1/conversations/", "input_file_id": "/v1/files/"}
# In an answer, or the first event of one. Where it stands in a text its quotes are escaped.
_ID = re.compile(rb'"id"\s*:\s*"((?:resp|conv|file|batch)[-_][\w-]{1,120})"')
_LONGEST_ID = 256
_MOST = 100_000
# Seconds for all replicas to say whether they have something.
_PATIENCE = 5.0


class Homes:
    """Remembers what it saw; what it did not see, or another router did, it finds by asking."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._names: OrderedDict[str, str] = OrderedDict()

    def learn(self, answer: bytes, replica: Replica) -> None:
        """An answer to a request that creates something begins so."""
        if found := _ID.search(answer[:8192]):
            self._note(found[1].decode(), replica)

    def _note(self, identity: str, replica: Replica) -> None:
        self._names[identity] = replica.name
        self._names.move_to_end(identity)
        if len(self._names) > _MOST:
            self._names.popitem(last=False)

    def of(self, identity: str) -> Replica | None:
        """Where something is, if that is known. Raises ApiError if it cannot be reached there."""
        name = self._names.get(identity)
        found = next((each for each in self._replicas.all if each.name == name), None)
        if found is not None and not found.up:
            raise ApiError(
                503,
                f"the replica that keeps {identity} takes no requests now; try again soon",
                code="replica_not_ready",
                headers={"Retry-After": "1"},
            )
        return found

    async def of_fields(self, request: web.Request, texts: dict[str, str]) -> Replica | None:
        """Where that is what a request goes on from: its fields that name something kept, by their names. None where
        nobody has it. Raises ApiError as `of` does."""
        for field, path in _NAMED.items():
            identity = texts.get(field, "")
            if identity and len(identity) <= _LONGEST_ID:
                return self.of(identity) or await self._find(request, path, identity)
        return None

    async def _find(self, request: web.Request, path: str, identity: str) -> Replica | None:
        ready = self._replicas.ready
        if len(ready) < 2:
            return None
        url = path + quote(identity, safe="")
        for replica in await asyncio.gather(*(self._has(request, each, url) for each in ready)):
            if replica is not None:
                self._note(identity, replica)
                return replica
        return None

    async def _has(self, request: web.Request, replica: Replica, path: str) -> Replica | None:
        try:
            async with (
                asyncio.timeout(_PATIENCE),
                self._replicas.session.get(
                    replica.name + path, headers=to_replica(request), allow_redirects=False
                ) as answer,
            ):
                return replica if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
