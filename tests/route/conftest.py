"""The router over stand-ins for servers, all in the test's event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sophserve.api.http.connections import Connections
from sophserve.api.http.serving import application_runner
from sophserve.config import ServerConfig
from sophserve.route.application import create_app
from sophserve.route.replicas import Replicas
from sophserve.route.router import Router

EVENTS = [b'data: {"n": %d}\n\n' % number for number in range(3)] + [b"data: [DONE]\n\n"]


@dataclass
class StandIn:
    """A server that notes what it is asked. status: of its answers, health: of /health. While the gate is closed a
    stream waits before its second event. kept: ids of what it has. drops: it closes connections without a word; stops:
    it refuses as one that stops."""

    url: str = ""
    status: int = 200
    health: int = 200
    drops: bool = False
    stops: bool = False
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    events: list[bytes] = field(default_factory=lambda: list(EVENTS))
    ended: list[str] = field(default_factory=list)
    transports: list[Any] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/health", "/live"):
            return web.json_response({"error": {"message": "loading"}}, status=self.health)
        self.transports.append(request.transport)
        data = await request.read()
        self.paths.append(request.rel_url.raw_path_qs)
        self.headers.append(request.headers.copy())
        body = json.loads(data) if request.content_type == "application/json" and data else {}
        self.bodies.append(body or data)
        if self.drops and request.transport:
            request.transport.abort()
        if self.status != 200:
            headers = {"Connection": "close"} if self.stops else {}
            return web.json_response({"error": {"message": "no"}}, status=self.status, headers=headers)
        if request.method != "POST":
            return self._found(request)
        if body.get("stream"):
            return await self._stream(request)
        made = f"resp_{len(self.kept)}{id(self)}"
        self.kept.add(made)
        return web.json_response({"id": made, "who": self.url}, headers={"X-Request-Id": "req-7", "X-Own": "yes"})

    def _found(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        known = name in self.kept or not request.path.startswith(("/v1/responses", "/v1/files/"))
        return web.json_response({"id": name, "who": self.url}, status=200 if known else 404)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        try:
            await response.prepare(request)
            for number, event in enumerate(self.events):
                if number == 1:
                    await self.gate.wait()
                await response.write(event)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("whole")
        return response


@dataclass
class Cluster:
    """A router and its replicas. http: a client of the router's."""

    router: Router
    replicas: list[StandIn]
    http: aiohttp.ClientSession
    port: int
    runner: web.AppRunner
    runners: list[web.AppRunner]

    def asked(self) -> list[int]:
        """How many requests each replica had."""
        return [len(replica.paths) for replica in self.replicas]

    async def post(self, path: str = "/v1/chat/completions", **body: Any) -> Any:
        async with self.http.post(path, json=body) as answer:
            return await answer.json()

    async def stop(self, place: int) -> None:
        """As if its process had died."""
        for transport in self.replicas[place].transports:
            if transport is not None:
                transport.abort()
        await self.runners[place].cleanup()


StartCluster = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start_cluster() -> AsyncIterator[StartCluster]:
    """`await start_cluster(replicas=2, **options of the router)`."""
    clusters: list[Cluster] = []

    async def start(replicas: int = 2, **options: Any) -> Cluster:
        stand_ins, runners = [StandIn() for _ in range(replicas)], []
        for stand_in in stand_ins:
            app = web.Application(client_max_size=1 << 28)
            app.router.add_route("*", "/{path:.*}", stand_in.answer)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            stand_in.url = f"http://127.0.0.1:{port_of(runner)}"
            stand_in.gate.set()
            runners.append(runner)
        connections = Connections(ServerConfig(**options))
        router = Router(Replicas([stand_in.url for stand_in in stand_ins]), connections)
        runner = application_runner(create_app(router), connections)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await router.replicas.look()
        port = port_of(runner)
        http = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        clusters.append(Cluster(router, stand_ins, http, port, runner, runners))
        return clusters[-1]

    yield start
    for cluster in clusters:
        await cluster.http.close()
        for runner in (cluster.runner, *cluster.runners):
            await runner.cleanup()
        await cluster.router.replicas.close()


def port_of(runner: web.AppRunner) -> int:
    return runner.addresses[0][1]
