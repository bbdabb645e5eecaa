"""/openapi.json: all endpoints in the words of https://spec.openapis.org/oas/v3.1.0, made from the types of bodies and
answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from sophserve.api.anthropic.messages import CountRequest, MessagesRequest
from sophserve.api.generation.request_bodies import ChatRequest, CompletionRequest
from sophserve.api.generation.served_model import SERVING
from sophserve.api.http.errors import ANTHROPIC_PATH, HEALTH_PATHS
from sophserve.api.openai.embeddings import EmbeddingRequest
from sophserve.api.openai.response_input import InputRequest, ResponsesRequest
from sophserve.api.operations import answer_types as answers
from sophserve.api.operations.tokenize import ConversationRequest, DetokenizeRequest, TokenizeRequest
from sophserve.config import ServerConfig
from sophserve.profile_format import ProfileOptions
from sophserve.version import VERSION


class Operation(NamedTuple):
    """The types of an answer and of a body. streams: whether the answer may also be server-sent events. required: that
    the body is. anthropic: the type of the answer to clients of Anthropic's API, where it is another one."""

    answer: Any
    body: type[msgspec.Struct] | None = None
    streams: bool = False
    required: bool = True
    anthropic: Any = None


OPERATIONS = {
    "GET /health": Operation(answers.Status),
    "GET /ready": Operation(answers.Status),
    "GET /live": Operation(answers.Status),
    "GET /ping": Operation(None),
    "POST /ping": Operation(None),
    "GET /version": Operation(answers.Version),
    "GET /openapi.json": Operation(dict[str, Any]),
    "GET /server_info": Operation(answers.ServerInfo),
    "GET /metrics": Operation(str),
    "POST /reset_prefix_cache": Operation(answers.Status),
    "POST /start_profile": Operation(answers.ProfileFolders, ProfileOptions, required=False),
    "POST /stop_profile": Operation(answers.ProfileFolders),
    "GET /requests": Operation(answers.LiveRequests),
    "POST /requests/{id}/cancel": Operation(answers.Cancelled),
    "DELETE /requests/{id}": Operation(answers.Cancelled),
    "POST /tokenize": Operation(answers.Tokens, TokenizeRequest),
    "POST /detokenize": Operation(answers.Text, DetokenizeRequest),
    "POST /apply-template": Operation(answers.Prompt, ConversationRequest),
    "GET /tokenizer_info": Operation(dict[str, Any]),
    "GET /v1/models": Operation(answers.ModelList, anthropic=answers.AnthropicModelList),
    "GET /v1/models/{name}": Operation(answers.Model, anthropic=answers.AnthropicModel),
    "POST /v1/chat/completions": Operation(answers.ChatCompletion, ChatRequest, streams=True),
    "POST /v1/completions": Operation(answers.Completion, CompletionRequest, streams=True),
    "POST /v1/embeddings": Operation(answers.EmbeddingList, EmbeddingRequest),
    "POST /v1/responses": Operation(answers.Response, ResponsesRequest, streams=True),
    "POST /v1/responses/input_tokens": Operation(answers.InputTokens, InputRequest),
    "GET /v1/responses/{id}": Operation(answers.Response),
    "DELETE /v1/responses/{id}": Operation(answers.Deleted),
    "POST /v1/messages": Operation(answers.AnthropicMessage, MessagesRequest, streams=True),
    "POST /v1/messages/count_tokens": Operation(answers.TokenCount, CountRequest),
}
"""What the routes take and give."""

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_EVENTS = "Server-sent events, where the body has stream: true. An error after the first event is an event."


async def openapi(request: web.Request) -> web.Response:
    """This description."""
    document = describe(request.app[SERVING].config, request.app.router.routes())
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def operation_of(route: web.AbstractRoute) -> str:
    """Its name in OPERATIONS."""
    assert route.resource is not None
    return f"{route.method} {route.resource.canonical}"


def describe(config: ServerConfig, routes: Iterable[web.AbstractRoute]) -> dict[str, Any]:
    """The document."""
    types: list[Any] = [operation.body for operation in OPERATIONS.values() if operation.body]
    types += [operation.answer for operation in OPERATIONS.values() if operation.answer is not None]
    types += [operation.anthropic for operation in OPERATIONS.values() if operation.anthropic is not None]
    types += [answers.ErrorBody, answers.AnthropicErrorBody]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        if (operation := OPERATIONS.get(operation_of(route))) is not None:
            method, _, path = operation_of(route).partition(" ")
            paths.setdefault(path, {})[method.lower()] = _operation(config, route, path, operation, by_type)
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


def _operation(
    config: ServerConfig, route: web.AbstractRoute, path: str, operation: Operation, schemas: dict[str, Any]
) -> dict[str, Any]:
    answer, body, streams, required, anthropic = operation
    error = schemas[repr(answers.AnthropicErrorBody if path.startswith(ANTHROPIC_PATH) else answers.ErrorBody)]
    failed = {"description": "An error, and what to change.", "content": {"application/json": {"schema": error}}}
    good: dict[str, Any] = {"description": "The answer."}
    if answer is not None:
        kind = "text/plain" if answer is str else "application/json"
        forms = [schemas[repr(form)] for form in (answer, anthropic) if form is not None]
        good["content"] = {kind: {"schema": forms[0] if anthropic is None else {"anyOf": forms}}}
    if streams:
        good["content"]["text/event-stream"] = {"schema": {"description": _EVENTS}}
    described: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', path)}".rstrip("_"),
        "summary": (route.handler.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "responses": {"200": good, "4XX": failed, "5XX": failed},
    }
    if names := re.findall(r"{(\w+)}", path):
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if body is not None:
        content = {"application/json": {"schema": schemas[repr(body)]}}
        described["requestBody"] = {"required": required, "content": content}
    if config.keys and path in HEALTH_PATHS:
        described["security"] = []
    return described
