"""Who may call: API keys, web origins (CORS), and nobody while the model is not ready."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.generation.served_model import SERVING
from sophserve.api.http.errors import HEALTH_PATHS, ApiError, Handler
from sophserve.api.http.quota import Account
from sophserve.api.http.request_record import current_record
from sophserve.api.operations.health import unavailable
from sophserve.api.playground.page import PATHS
from sophserve.keys import ApiKey, digest_of

# The health checks speak for themselves, and the playground shows what they say.
OPEN_PATHS = HEALTH_PATHS | PATHS


def require_key(keys: list[ApiKey]) -> Middleware:
    """Middleware that asks every request but those of OPEN_PATHS for one of the keys, as `Authorization: Bearer KEY` or
    `x-api-key: KEY`, and notes whose it is."""
    accounts = [Account(key) for key in keys]

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = current_record.get()
        if record.path not in OPEN_PATHS:
            given = digest_of(_given_key(request))
            # Digests of equal length, each one compared: the time says nothing about any key.
            found = [account for account in accounts if hmac.compare_digest(given, account.key.digest)]
            if not found:
                raise ApiError(
                    401,
                    "send a valid API key as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            record.account = found[0]
            record.client = f"key {found[0].key.name}"
        return await handler(request)

    return middleware


def _given_key(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return request.headers.get("x-api-key", "")


@web.middleware
async def require_ready(request: web.Request, handler: Handler) -> web.StreamResponse:
    """503 for every request until the model is loaded, and again once the server stops or the engine is lost. The
    health checks speak for themselves, and the playground shows what they say."""
    if current_record.get().path not in OPEN_PATHS and (error := unavailable(request.app[SERVING])) is not None:
        raise error
    return await handler(request)


def allow_origins(app: web.Application, origins: list[str]) -> None:
    """Let pages of these web origins call the server (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

    def allowed(request: web.BaseRequest) -> bool:
        return "*" in origins or request.headers.get("Origin") in origins

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if "Origin" in request.headers and allowed(request):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id, X-Sophserve-Warnings"
            response.headers["Vary"] = "Origin"

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            request.method != "OPTIONS"
            or "Access-Control-Request-Method" not in request.headers
            or not allowed(request)
        ):
            return await handler(request)
        headers = {
            "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
            "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=headers)

    app.on_response_prepare.append(add_headers)
    app.middlewares.insert(0, answer_preflight)
