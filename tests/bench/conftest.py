"""A scripted server that `sophserve load` can be run against."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from sophserve.bench import load


class Fake:
    """Answers with `max_tokens` parts "a " of one token each, unless `answer` says otherwise. A prompt has a token for
    each word, and five of a template."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = self.stream
        self.models: list[str] = ["scripted"]
        self.has_tokenizer = False
        self.pause = 0.0  # seconds before each event
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        for path in ("/v1/chat/completions", "/v1/completions"):
            app.router.add_post(path, self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self.site = web.TCPSite(runner, "127.0.0.1", 0)
        await self.site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.has_tokenizer:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"tokens": [7 for word in (await request.json())["prompt"].split() for _ in "ab"]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        return await self.answer(request, body)

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        size = len(prompt) if isinstance(prompt, list) else 5 + len(prompt.split())
        return {
            "prompt_tokens": size,
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"accepted_prediction_tokens": 1, "rejected_prediction_tokens": 3},
        }

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body["stream"]:
            choice = {"message": {"content": "a " * body["max_tokens"]}, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": self.usage(body)})
        parts = [{"role": "assistant", "content": ""}, *[{"content": "a "}] * body["max_tokens"]]
        events = [{"choices": [{"delta": part, "finish_reason": None}], "usage": None} for part in parts]
        events.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if body.get("stream_options", {}).get("include_usage"):
            events.append({"choices": [], "usage": self.usage(body)})
        return await self.send(request, *[b"data: " + json.dumps(event).encode() for event in events], b"data: [DONE]")

    async def send(self, request: web.Request, *events: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            if self.pause:
                await asyncio.sleep(self.pause)
            await response.write(event + b"\n\n")
        return response

    async def load(self, arguments: str) -> int:
        return await load.run(load.parse(["--url", self.url, *arguments.split()]))


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    server = Fake()
    runner = await server.start()
    yield server
    await runner.cleanup()
