"""The aiohttp application of the router."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sophserve.api.anthropic.error_envelope import ANTHROPIC, speaks_anthropic
from sophserve.api.http.access import ACCOUNTS, allow_origins, require_key
from sophserve.api.http.connections import CONNECTIONS, SERVER
from sophserve.api.http.error_middleware import answer_errors
from sophserve.api.http.errors import ApiError, Envelope
from sophserve.api.http.origins import refuse_foreign_pages
from sophserve.api.http.quota import Account
from sophserve.api.http.upload import MAX_BODY_BYTES, take_expectation
from sophserve.api.openai.error_envelope import OPENAI, RESPONSES
from sophserve.route.router import Router

OPEN = frozenset({"/health", "/ready", "/live", "/ping"})
"""What answers without a key."""
OF_EACH = (
    ("GET", "/requests"),
    ("GET", "/server_info"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
)
"""What operators ask of every replica at once."""
ROUTER = web.AppKey("router", Router)


class _Paths:
    """See sophserve.api.http.error_middleware.Routes."""

    def envelope(self, request: web.Request, path: str) -> Envelope:
        """Anthropic's for its clients and its path, OpenAI's for all others."""
        if path.startswith("/v1/messages") or (path.startswith("/v1/models") and speaks_anthropic(request)):
            return ANTHROPIC
        return RESPONSES if path.startswith("/v1/responses") else OPENAI

    def names_something(self, path: str) -> bool:
        """Never: every path and method is some replica's."""
        return False

    def is_quiet(self, path: str) -> bool:
        """Whether it is asked for every few seconds."""
        return path in OPEN or path == "/metrics"


def create_app(router: Router) -> web.Application:
    """What the replicas serve, under one address."""
    config = router.connections.config
    accounts = [Account(key) for key in config.keys]
    who = require_key(accounts, OPEN) if accounts else refuse_foreign_pages(config)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[answer_errors("", _Paths()), who])
    app[ROUTER], app[CONNECTIONS], app[ACCOUNTS] = router, router.connections, accounts
    app.on_response_prepare.append(_name_server)
    for path in ("/health", "/ready", "/ping"):
        app.router.add_get(path, _health)
    app.router.add_get("/live", _live)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/", _page)
    for method, path in OF_EACH:
        app.router.add_route(method, path, router.ask_all, expect_handler=take_expectation)
    app.router.add_route("*", "/{path:.*}", router.route, expect_handler=take_expectation)
    if config.allowed_origins:
        allow_origins(app, config.allowed_origins)
    return app


async def _health(request: web.Request) -> web.Response:
    router = request.app[ROUTER]
    if error := router.refusal():
        raise error
    return web.json_response(
        {"status": "ok", "replicas": len(router.replicas.all), "ready": len(router.replicas.ready)}
    )


async def _live(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _metrics(request: web.Request) -> web.Response:
    router = request.app[ROUTER]
    text = generate_latest(router.metrics.registry) + generate_latest(router.connections.registry)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _page(request: web.Request) -> web.Response:
    raise ApiError(404, "the router has no page of its own; open that of a replica")


async def _name_server(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
