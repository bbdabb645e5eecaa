"""What clients know an error by: the words, types and codes of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from anthropic import AnthropicError, AsyncAnthropic
from openai import OpenAIError

OPENAI = re.compile(r"This model's maximum context length is 256 tokens\. However, ")
ANTHROPIC = re.compile(r"^prompt is too long: (\d+) tokens > (\d+) maximum$")
MESSAGE = {"role": "user", "content": "x " * 300}
# More characters than any 256 tokens stand for, and so never tokenized.
HUGE = "x" * 100_000


@pytest.fixture
async def app(start_app: Any) -> Any:
    return await start_app()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [5] * 256}),
        ("completions", {"prompt": "x " * 300}),
        ("completions", {"prompt": HUGE}),
        ("completions", {"prompt": ["x", HUGE]}),
        ("completions", {"prompt": [5] * 200, "max_tokens": 100}),
        ("chat/completions", {"messages": [MESSAGE]}),
        ("chat/completions", {"messages": [MESSAGE | {"content": HUGE}]}),
        ("chat/completions", {"messages": [MESSAGE | {"content": "x"}], "max_completion_tokens": 256}),
        ("chat/completions", {"messages": [MESSAGE | {"content": "x"}], "max_tokens": 256}),
        ("chat/completions", {"messages": [MESSAGE | {"content": "x"}], "min_tokens": 256}),
        ("responses", {"input": "x " * 300}),
        ("responses", {"input": [MESSAGE]}),
        ("responses", {"input": HUGE}),
        ("embeddings", {"input": [5] * 257}),
        ("embeddings", {"input": ["x", "x " * 300]}),
        ("embeddings", {"input": HUGE}),
    ],
)
async def test_openai_says_what_does_not_fit(app: Any, path: str, body: dict[str, Any], stream: bool) -> None:
    status, answer = await app.post(f"/v1/{path}", body | {"stream": stream} if path != "embeddings" else body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["type"] == "invalid_request_error"
    assert OPENAI.match(answer["error"]["message"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["x " * 300, HUGE, [{"type": "text", "text": "x " * 300}]])
async def test_anthropic_says_what_does_not_fit(app: Any, content: Any, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 5, "stream": stream}
    status, answer = await app.post("/v1/messages", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    found = ANTHROPIC.match(answer["error"]["message"])
    assert found and int(found[1]) > int(found[2])


async def test_texts_that_no_bound_is_known_for(app: Any) -> None:
    app.serving.characters_per_token = None
    huge = "x" * (2 << 20)
    status, answer = await app.post("/v1/completions", {"prompt": huge})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert OPENAI.match(answer["error"]["message"])
    # What is cut to the context is only too long to be tokenized.
    status, answer = await app.post("/v1/completions", {"prompt": huge, "truncate_prompt_tokens": -1})
    assert (status, answer["error"]["code"]) == (400, None)


def _shape(error: Any) -> tuple[str, int, str, str | None]:
    body = error.body.get("error", error.body)
    return type(error).__name__, error.status_code, body["type"], body.get("code")


async def test_the_official_clients_raise_what_they_have(start_app: Any) -> None:
    app = await start_app(api_key=["secret"], max_concurrent_requests_per_key=1)
    others = AsyncAnthropic(base_url=app.url, api_key="secret", max_retries=0)
    messages: Any = [{"role": "user", "content": "Hi"}]

    async def openai(**options: Any) -> Any:
        client = app.openai.with_options(api_key=options.pop("key", "secret"))
        with pytest.raises(OpenAIError) as caught:
            await client.chat.completions.create(**{"model": "tiny", "messages": messages, **options})
        return _shape(caught.value)

    async def anthropic(**options: Any) -> Any:
        client = others.with_options(api_key=options.pop("key", "secret"))
        with pytest.raises(AnthropicError) as caught:
            await client.messages.create(**{"model": "tiny", "messages": messages, "max_tokens": 5, **options})
        return _shape(caught.value)

    assert await openai(key="wrong") == ("AuthenticationError", 401, "authentication_error", "invalid_api_key")
    assert await anthropic(key="wrong") == ("AuthenticationError", 401, "authentication_error", None)
    assert await openai(model="gpt") == ("NotFoundError", 404, "invalid_request_error", "model_not_found")
    assert await anthropic(model="claude") == ("NotFoundError", 404, "not_found_error", None)
    app.engine.gate.clear()
    held = asyncio.create_task(app.openai.chat.completions.create(model="tiny", messages=messages))
    await app.until_running(1)
    assert await openai() == ("RateLimitError", 429, "rate_limit_error", "rate_limit_exceeded")
    assert await anthropic() == ("RateLimitError", 429, "rate_limit_error", None)
    app.engine.gate.set()
    await held
    app.engine.gate.clear()
    assert await openai(extra_body={"timeout": 0.01}) == ("APIStatusError", 408, "timeout_error", "timeout")
    app.engine.gate.set()
    app.serving.draining = True
    assert await openai() == ("InternalServerError", 503, "server_error", "stopping")
    name, *rest = await anthropic()
    assert rest == [503, "overloaded_error", None] and name in ("InternalServerError", "ServiceUnavailableError")
    await others.close()
