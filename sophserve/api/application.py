"""The aiohttp application: routes and what every request passes through."""

from __future__ import annotations

from aiohttp import web

from sophserve.api.anthropic.messages import count_tokens, messages
from sophserve.api.generation.served_model import SERVING, Serving
from sophserve.api.http.access import allow_origins, require_key, require_ready
from sophserve.api.http.connections import SERVER
from sophserve.api.http.errors import MAX_BODY_BYTES, Handler, answer_errors
from sophserve.api.http.origins import refuse_foreign_pages
from sophserve.api.http.upload import take_expectation
from sophserve.api.openai.chat import chat_completions
from sophserve.api.openai.completions import completions
from sophserve.api.openai.embeddings import embeddings
from sophserve.api.openai.responses import count_input_tokens, create_response, delete_response, get_response
from sophserve.api.operations.health import health, live, ping, version
from sophserve.api.operations.live_requests import cancel_request, list_requests
from sophserve.api.operations.metrics import metrics, reset_prefix_cache
from sophserve.api.operations.models import get_model, list_models
from sophserve.api.operations.openapi import openapi
from sophserve.api.operations.profile import start_profile, stop_profile
from sophserve.api.operations.server_info import server_info
from sophserve.api.operations.tokenize import apply_template, detokenize, tokenize, tokenizer_info
from sophserve.api.playground import page as playground


def _post(path: str, handler: Handler) -> web.RouteDef:
    return web.post(path, handler, expect_handler=take_expectation)


ROUTES = [
    web.get("/health", health),
    web.get("/ready", health),
    web.get("/live", live),
    web.get("/ping", ping),
    _post("/ping", ping),
    web.get("/version", version),
    web.get("/openapi.json", openapi),
    web.get("/server_info", server_info),
    web.get("/metrics", metrics),
    _post("/reset_prefix_cache", reset_prefix_cache),
    _post("/start_profile", start_profile),
    _post("/stop_profile", stop_profile),
    web.get("/requests", list_requests),
    _post("/requests/{id}/cancel", cancel_request),
    web.delete("/requests/{id}", cancel_request),
    _post("/tokenize", tokenize),
    _post("/detokenize", detokenize),
    _post("/apply-template", apply_template),
    web.get("/tokenizer_info", tokenizer_info),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{name:.+}", get_model),
    _post("/v1/chat/completions", chat_completions),
    _post("/v1/completions", completions),
    _post("/v1/embeddings", embeddings),
    _post("/v1/responses", create_response),
    _post("/v1/responses/input_tokens", count_input_tokens),
    web.get("/v1/responses/{id}", get_response),
    web.delete("/v1/responses/{id}", delete_response),
    _post("/v1/messages", messages),
    _post("/v1/messages/count_tokens", count_tokens),
]


def create_app(serving: Serving) -> web.Application:
    """The OpenAI API over one model."""
    config = serving.config
    who = require_key(config.keys) if config.keys else refuse_foreign_pages(config)
    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[answer_errors(config.root_path), who, require_ready]
    )
    app[SERVING] = serving
    app.on_response_prepare.append(_hide_versions)
    app.add_routes(ROUTES)
    if config.root_path:  # a proxy may take it off the path, or not
        app.add_routes(
            [web.route(route.method, config.root_path + route.path, route.handler, **route.kwargs) for route in ROUTES]
        )
    if config.ui:
        app.add_routes(playground.routes(config.root_path))
    if config.allowed_origins:
        allow_origins(app, config.allowed_origins)
    return app


async def _hide_versions(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
