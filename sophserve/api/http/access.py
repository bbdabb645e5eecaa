"""Who may call: API keys and web origins (CORS)."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Middleware

from sophserve.api.http.error_middleware import Handler
from sophserve.api.http.errors import ApiError
from sophserve.api.http.quota import Account
from sophserve.api.http.request_record import current_record
from sophserve.keys import digest_of

ACCOUNTS = web.AppKey("accounts", list[Account])


def require_key(accounts: list[Account], open_paths: Collection[str]) -> Middleware:
    """Middleware that asks every request but those of open_paths for the key of an account, as `Authorization: Bearer
    KEY` or `x-api-key: KEY`, and notes whose it is."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = current_record.get()
        if record.path not in open_paths:
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
