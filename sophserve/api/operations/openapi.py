"""/openapi.json: all endpoints in the words of https://spec.openapis.org/oas/v3.1.0, made from the types of bodies and
answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.route import ROUTES, Route
from sophserve.config import ServerConfig
from sophserve.version import VERSION

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_EVENTS = "Server-sent events, where the body has stream: true. An error after the first event is an event."


async def openapi(request: web.Request) -> web.Response:
    """This description."""
    document = describe(request.app[SERVED_MODEL].config, request.app[ROUTES].routes)
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def describe(config: ServerConfig, routes: Sequence[Route]) -> dict[str, Any]:
    """The document."""
    types: list[Any] = [route.body for route in routes if route.body]
    types += [route.answer for route in routes if route.answer is not None]
    types += [route.anthropic for route in routes if route.anthropic is not None]
    types += dict.fromkeys(route.envelope.schema for route in routes)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        path = re.sub(r"{(\w+):[^}]*}", r"{\1}", route.path)  # aiohttp's patterns of names
        paths.setdefault(path, {})[route.method.lower()] = _operation(config, route, path, by_type)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "sophserve", "version": VERSION},
        "servers": [{"url": config.root_path or "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }
    if config.keys:
        document["components"]["securitySchemes"] = _KEYS
        document["security"] = [{name: []} for name in _KEYS]
    return document


def _operation(config: ServerConfig, route: Route, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    error = schemas[repr(route.envelope.schema)]
    failed = {"description": "An error, and what to change.", "content": {"application/json": {"schema": error}}}
    good: dict[str, Any] = {"description": "The answer."}
    if route.answer is bytes:
        good["content"] = {"application/octet-stream": {"schema": {}}}
    elif route.answer is not None:
        kind = "text/plain" if route.answer is str else "application/json"
        forms = [schemas[repr(form)] for form in (route.answer, route.anthropic) if form is not None]
        good["content"] = {kind: {"schema": forms[0] if route.anthropic is None else {"anyOf": forms}}}
    if route.streams:
        good["content"]["text/event-stream"] = {"schema": {"description": _EVENTS}}
    described: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', path)}".rstrip("_"),
        "summary": (route.handler.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "responses": {"200": good, "4XX": failed, "5XX": failed},
    }
    if parameters := _parameters(route, path):
        described["parameters"] = parameters
    if route.body is not None:
        kind = "multipart/form-data" if route.form else "application/json"
        content = {kind: {"schema": schemas[repr(route.body)]}}
        described["requestBody"] = {"required": not route.optional, "content": content}
    if config.keys and route.open:
        described["security"] = []
    return described


def _parameters(route: Route, path: str) -> list[dict[str, Any]]:
    """Those of the path and of the URL's query."""
    name = {"type": "string", "minLength": 1}
    found = [{"name": each, "in": "path", "required": True, "schema": name} for each in re.findall(r"{(\w+)}", path)]
    if route.query is not None:
        [fields] = msgspec.json.schema(route.query)["$defs"].values()
        found += [{"name": each, "in": "query", "schema": schema} for each, schema in fields["properties"].items()]
    return found
