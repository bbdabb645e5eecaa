"""Which replica is asked, and what happens if it does not take the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import aiohttp
import msgspec
from aiohttp import web

from sophserve.api.http.connections import Connections
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import current_record
from sophserve.route.body import Body, PassingBody, WholeBody, body_of
from sophserve.route.choice import Key, choose, fields_of, key_of, keys_of, owner, text_field
from sophserve.route.homes import CREATES, KEPT, OWNED, Homes
from sophserve.route.metrics import RouterMetrics
from sophserve.route.passing import Saw, Unreached, asked, pass_on
from sophserve.route.replicas import Replica, Replicas

GENERATES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""A POST to these has a prompt, whose beginning a replica may have cached."""
# Bytes of a body that is looked at without a thread.
_INLINE = 1 << 18
# Seconds between two looks for a replica.
_LOOK = 0.1

Pick = Callable[[list[Replica]], tuple[Replica, str]]
"""Chooses among those that are left, which are some, and says why."""


class Router:
    """Passes requests on to replicas. patience: seconds that a request waits for a replica where none takes any."""

    def __init__(self, replicas: Replicas, connections: Connections, patience: float = 0.0) -> None:
        self.replicas = replicas
        self.connections = connections
        self._patience = patience
        self.homes = Homes(replicas)
        self.metrics = RouterMetrics(replicas)
        self.stopping = False

    def refusal(self) -> ApiError | None:
        """Why no request can be taken."""
        if self.stopping:
            return ApiError(503, "the router is stopping", code="stopping", headers={"Connection": "close"})
        if not self.replicas.ready:
            return _none_ready(len(self.replicas.all))
        return None

    async def route(self, request: web.Request) -> web.StreamResponse:
        """Answer a request by a replica. Raises ApiError, RequestError."""
        await self._ready_but(set())
        if error := self.refusal():
            raise error
        async with body_of(request) as body:
            pick, again_on_404 = await self._picker(request, body)
            return await self._send(request, body, pick, again_on_404)

    async def _picker(self, request: web.Request, body: Body) -> tuple[Pick, bool]:
        """How to choose, and whether another replica may have what one does not."""
        record = current_record.get()
        path, creates = record.path, request.method == "POST" and record.path in CREATES
        if kept := KEPT.match(path):
            return partial(_where_it_is, self.homes.of(kept[1] or kept[2]), _client_key(request)), True
        keys: list[tuple[str, Key]] = []
        if isinstance(body, WholeBody) and (creates or (request.method == "POST" and path in GENERATES)):
            session = request.headers.get("X-Session-Id", "")
            if len(body.data) <= _INLINE:
                keys, texts = _looked_at(body.data, session)
            else:
                keys, texts = await asyncio.to_thread(_looked_at, body.data, session)
            if creates and (home := await self.homes.of_fields(request, texts)):
                return partial(_where_it_is, home, b""), False
        if path in OWNED:
            return partial(_where_it_is, None, _client_key(request)), False
        return lambda ready: choose(keys, ready), False

    async def _send(self, request: web.Request, body: Body, pick: Pick, again_on_404: bool) -> web.StreamResponse:
        record, tried = current_record.get(), set[Replica]()
        while ready := await self._ready_but(tried):
            if not body.can_be_sent:
                break
            replica, why = pick(ready)
            tried.add(replica)
            record.notes |= {"replica": replica.name, "by": why}
            self.metrics.count(replica, why)
            try:
                async with replica.request(), asked(self.replicas.session, replica, request, body) as answer:
                    others = (len(ready) > 1 or self._waits_for_another(answer)) and body.can_be_sent
                    if others and (answer.status == 503 or (answer.status == 404 and again_on_404)):
                        replica.failures["unavailable" if answer.status == 503 else "not_here"] += 1
                        continue
                    return await pass_on(request, answer, replica, self._watcher(request, replica))
            except Unreached as error:
                replica.failures["unreached"] += 1
                replica.note(str(error), silent=True)
        if body.problem:
            raise body.problem
        if tried and not body.can_be_sent:
            raise ApiError(503, "the replica does not take the request now; send it again", code="replica_not_ready")
        raise _none_ready(len(self.replicas.all))

    async def _ready_but(self, tried: set[Replica]) -> list[Replica]:
        """Those that take requests and were not asked. Waits for one, as long as the router has patience."""
        found: list[Replica] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while not (found := [each for each in self.replicas.ready if each not in tried]) and not self.stopping:
                    await asyncio.sleep(_LOOK)
        return found

    def _waits_for_another(self, answer: aiohttp.ClientResponse) -> bool:
        """Whether to do so where the only replica stops."""
        stops = answer.status == 503 and answer.headers.get("Connection", "").lower() == "close"
        return stops and self._patience > 0

    def _watcher(self, request: web.Request, replica: Replica) -> Saw:
        """Looks at an answer's first bytes."""
        record, first = current_record.get(), True

        def saw(data: bytes) -> None:
            nonlocal first
            if not first:
                return
            first = False
            self.metrics.first_byte(record)
            if request.method == "POST" and record.path in CREATES:
                self.homes.learn(data, replica)

        return saw

    async def drain(self, seconds: float) -> None:
        """Take no new request, wait for the running ones, and after that time end them with an error."""
        self.stopping = True
        await asyncio.gather(*(replica.drain(seconds) for replica in self.replicas.known))

    async def ask_all(self, request: web.Request) -> web.Response:
        """What each replica answers to an operator."""
        async with body_of(request) as body:
            if isinstance(body, PassingBody):
                raise ApiError(415, "send JSON (Content-Type: application/json)")
            replicas = self.replicas.all
            found = await asyncio.gather(*(self._ask_one(request, replica, body) for replica in replicas))
        status = max((status for status, _ in found), default=200)
        answers = {replica.name: answer for replica, (_, answer) in zip(replicas, found, strict=True)}
        return web.Response(
            status=status, body=msgspec.json.encode({"replicas": answers}), content_type="application/json"
        )

    async def _ask_one(self, request: web.Request, replica: Replica, body: Body) -> tuple[int, object]:
        try:
            async with asked(self.replicas.session, replica, request, body) as answer:
                data, status = await answer.read(), answer.status
        except Unreached as error:
            return 502, {"error": {"message": str(error)}}
        try:
            return status, msgspec.json.decode(data or b"null")
        except msgspec.MsgspecError:
            return status, data.decode(errors="replace")


def _looked_at(body: bytearray, session: str) -> tuple[list[tuple[str, Key]], dict[str, str]]:
    """Keys of a request, and those of its fields that are texts and may name what is kept."""
    fields = fields_of(body)
    names = ("previous_response_id", "conversation", "input_file_id")
    return keys_of(fields, session), {name: text for name in names if (text := text_field(fields, name))}


def _client_key(request: web.Request) -> Key:
    """Of whoever sends a request."""
    given = request.headers.get("Authorization") or request.headers.get("x-api-key") or ""
    return key_of(b"client", given.encode(errors="surrogateescape"))


def _where_it_is(home: Replica | None, key: Key, ready: list[Replica]) -> tuple[Replica, str]:
    """The home first, then the owner of the key."""
    return (home, "home") if home in ready else (owner(key, ready), "owner")


def _none_ready(count: int) -> ApiError:
    return ApiError(
        503,
        f"none of {count} replicas takes requests now; try again soon",
        code="no_replica",
        headers={"Retry-After": "1"},
    )
