"""What a route of the API is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from sophserve.api.anthropic.error_envelope import ANTHROPIC, speaks_anthropic
from sophserve.api.http.error_middleware import Handler
from sophserve.api.http.errors import Envelope
from sophserve.api.openai.error_envelope import OPENAI


class Route(NamedTuple):
    """One method of a path; the handler's docstring says what it is for.

    answer: the type of the answer, bytes for a file; body: that of the request's, which may be left out if optional,
    and is a form's rather than JSON's if form. query: that of the URL's parameters. streams: the answer may also be
    server-sent events. envelope: in which its errors are. anthropic: the type of the answer to clients of Anthropic's
    API, where they get another one, as they then do of errors. open: it answers without a key, and while the model
    loads. quiet: it is asked for every few seconds, so the log leaves it out. line: from a body to the answer, where
    lines of batches may ask for it.
    """

    method: str
    path: str
    handler: Handler
    answer: Any = None
    body: type[msgspec.Struct] | None = None
    optional: bool = False
    form: bool = False
    query: type[msgspec.Struct] | None = None
    streams: bool = False
    envelope: Envelope = OPENAI
    anthropic: Any = None
    open: bool = False
    quiet: bool = False
    line: Callable[[web.Application, Any], Awaitable[dict[str, Any]]] | None = None

    @property
    def beginning(self) -> str:
        """The path up to a name in it."""
        return self.path.partition("{")[0]


class RouteTable:
    """All routes. See sophserve.api.http.error_middleware.Routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self.open_paths = frozenset(route.path for route in routes if route.open)
        self._quiet_paths = frozenset(route.path for route in routes if route.quiet)
        self._longest_first = sorted(routes, key=lambda route: -len(route.beginning))
        self._named = tuple({route.beginning for route in routes if "{" in route.path})

    def envelope(self, request: web.Request, path: str) -> Envelope:
        """That of the route which a path is or lies below; OpenAI's where there is none."""
        route = next((route for route in self._longest_first if path.startswith(route.beginning)), None)
        if route is None:
            return OPENAI
        return ANTHROPIC if route.anthropic is not None and speaks_anthropic(request) else route.envelope

    def names_something(self, path: str) -> bool:
        """Whether the path ends in a name, or looks like it."""
        return path.startswith(self._named)

    def is_quiet(self, path: str) -> bool:
        """Whether its requests are left out of the log."""
        return path in self._quiet_paths


ROUTES = web.AppKey("routes", RouteTable)
