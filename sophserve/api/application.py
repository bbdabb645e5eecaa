"""The aiohttp application: routes and what every request passes through."""

from __future__ import annotations

from aiohttp import web

from sophserve.api.batches.runner import RUNNER, Runner
from sophserve.api.batches.store import BATCH_STORE, BatchStore
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.access import ACCOUNTS, allow_origins, require_key
from sophserve.api.http.connections import CONNECTIONS, SERVER
from sophserve.api.http.error_middleware import answer_errors
from sophserve.api.http.origins import refuse_foreign_pages
from sophserve.api.http.quota import Account
from sophserve.api.http.text_threads import TEXT_THREADS
from sophserve.api.http.upload import MAX_BODY_BYTES, take_expectation
from sophserve.api.openai.background import BACKGROUND, BackgroundResponses
from sophserve.api.openai.response_store import STORE, ResponseStore
from sophserve.api.openai.responses import response_answer
from sophserve.api.operations.health import require_ready
from sophserve.api.playground import page
from sophserve.api.route import ROUTES, Route
from sophserve.api.routes import TABLE


def create_app(served: ServedModel) -> web.Application:
    """The OpenAI API over one model."""
    config = served.config
    # The health checks speak for themselves, and the playground shows what they say.
    open_paths = TABLE.open_paths | page.PATHS
    accounts = [Account(key) for key in config.keys]
    who = require_key(accounts, open_paths) if accounts else refuse_foreign_pages(config)
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[answer_errors(config.root_path, TABLE), who, require_ready(open_paths)],
    )
    app[SERVED_MODEL], app[CONNECTIONS], app[TEXT_THREADS] = served, served.connections, served.texts
    app[ROUTES], app[STORE] = TABLE, ResponseStore(config.response_store_bytes)
    app[BACKGROUND] = BackgroundResponses(app, response_answer)
    app[ACCOUNTS], app[BATCH_STORE] = accounts, BatchStore(config)
    app[RUNNER] = Runner(app)
    app.on_response_prepare.append(_hide_versions)
    for prefix in dict.fromkeys(("", config.root_path)):  # a proxy may take it off the path, or not
        app.add_routes([_definition(route, prefix) for route in TABLE.routes])
    if config.ui:
        app.add_routes(page.routes(config.root_path))
    if config.allowed_origins:
        allow_origins(app, config.allowed_origins)
    return app


def _definition(route: Route, prefix: str) -> web.RouteDef:
    expectation = {"expect_handler": take_expectation} if route.method == "POST" else {}
    if route.method == "GET":
        return web.get(prefix + route.path, route.handler)  # and HEAD
    return web.route(route.method, prefix + route.path, route.handler, **expectation)


async def _hide_versions(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
