"""/openapi.json is valid, complete, and true of what the server answers."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from sophserve.api.playground.page import PATHS
from sophserve.api.routes import TABLE

HELLO = [{"role": "user", "content": "Hi"}]


async def document(app: Any, root: str = "") -> dict[str, Any]:
    async with app.http.get(f"{root}/openapi.json", headers={"x-api-key": "secret"}) as response:
        assert response.status == 200
        return await response.json()


@pytest.mark.parametrize("options", [{}, {"api_key": ["secret"], "root_path": "/llm"}])
async def test_the_document_is_valid_and_complete(start_app: Any, options: dict[str, Any]) -> None:
    app = await start_app(**options)
    found = await document(app, options.get("root_path", ""))
    validate(found, cls=OpenAPIV31SpecValidator)
    described = {f"{method.upper()} {path}" for path, methods in found["paths"].items() for method in methods}
    routes = {f"{route.method} {route.resource.canonical}" for route in app.runner.app.router.routes()}
    routes -= {f"GET {path}" for path in PATHS}
    routes = {route for route in routes if not route.startswith("HEAD ") and "/llm" not in route}
    assert described == routes and len(routes) == len(TABLE.routes)
    assert all(entry["summary"] for methods in found["paths"].values() for entry in methods.values())
    assert found["servers"] == [{"url": options.get("root_path", "/")}]
    assert ("security" in found) == ("api_key" in options)
    assert "secret" not in str(found)


def check(found: dict[str, Any], path: str, status: int, answer: Any) -> None:
    """An answer is as the document says."""
    method = found["paths"][path].get("post") or found["paths"][path]["get"]
    response = method["responses"]["200" if status == 200 else f"{status // 100}XX"]
    schema = response["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": found["components"]})
    assert not list(validator.iter_errors(answer))


async def test_answers_are_as_described(app: Any) -> None:
    found = await document(app)
    for path in ("/health", "/version", "/server_info", "/requests", "/v1/models", "/openapi.json"):
        async with app.http.get(path) as response:
            check(found, path, response.status, await response.json())
    chat = {"messages": HELLO, "max_tokens": 3}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
        ("/v1/chat/completions", {**chat, "prompt_logprobs": 1}),
        ("/v1/completions", {"prompt": ["Hi", "Ho"], "echo": True, "logprobs": 2, "prompt_logprobs": 1}),
        ("/v1/embeddings", {"input": ["Hi", [70]]}),
        ("/v1/embeddings", {"input": "Hi", "encoding_format": "base64"}),
        ("/v1/responses", {"input": "Hi", "top_logprobs": 1}),
        ("/v1/responses/input_tokens", {"input": "Hi"}),
        ("/v1/messages", chat),
        ("/v1/messages/count_tokens", chat),
        ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
        ("/detokenize", {"tokens": [70]}),
        ("/apply-template", chat),
    ):
        status, answer = await app.post(path, body)
        assert status == 200
        check(found, path, status, answer)
        status, answer = await app.post(path, {**body, "model": "nowhere"})
        assert status == 404
        check(found, path, status, answer)
