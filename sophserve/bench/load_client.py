"""Asks any OpenAI-compatible server, and notes when each part of the answer came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import msgspec

from sophserve.bench.load_metrics import Outcome
from sophserve.errors import SophserveError
from sophserve.http_client import event_data, key_header, redirection, what_failed
from sophserve.openai_answers import Answer, Choice, Models, Part, decode_answer, error_message

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
NO_CONNECTION = "no connection"
LONGEST_CONNECT = 30.0
INTERRUPTED = ("interrupted", "the run was ended")

# What is lost with each field that some servers refuse.
OPTIONAL = {
    "ignore_eos": "answers may end early",
    "stream_options": "tokens are counted by the parts of an answer",
}


class LoadError(SophserveError):
    """The server cannot be measured."""


class _Failed(Exception):
    """An answer that is none."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Prompt:
    """What to ask: a text, token ids, or the messages of a chat."""

    content: str | list[int] | list[dict[str, Any]]
    max_tokens: int


@dataclass(frozen=True)
class Target:
    """A server, and how to ask it. ignore_eos: have answers of full length, None is no; timeout: seconds of a whole
    answer; extra_body: further fields of every request."""

    url: str
    model: str = ""
    api_key: str = ""
    endpoint: str = "chat"
    stream: bool = True
    temperature: float = 0.0
    ignore_eos: bool | None = None
    timeout: float = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict)


class Client:
    """Use as a context."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.model = target.model
        self._base = target.url
        self._optional: dict[str, Any] = {"ignore_eos": True} if target.ignore_eos else {}
        if target.stream:
            self._optional["stream_options"] = {"include_usage": True}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=key_header(self.target.api_key),
            timeout=aiohttp.ClientTimeout(sock_connect=LONGEST_CONNECT),
            # A kept connection may be one that the server closes while the next request goes out: llama.cpp's does.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def prepare(self) -> list[str]:
        """Find the model and ask for one token, without the fields that the server refuses. Returns what to tell the
        user. Raises LoadError if the server cannot answer."""
        if not self.model:
            self.model = await self._first_model()
        notes = []
        probe = Prompt("Hello", 1)
        outcome = await self.ask(probe)
        while outcome.error in ("HTTP 400", "HTTP 422") and self._optional:
            name = next((name for name in self._optional if name in outcome.message), next(iter(self._optional)))
            del self._optional[name]
            notes.append(f"the server refuses {name}: {OPTIONAL[name]}")
            outcome = await self.ask(probe)
        self._check(outcome)
        return notes

    async def prompt_tokens(self, prompt: Prompt) -> int | None:
        """How many the server counts in a prompt, if it tells. Raises LoadError."""
        outcome = await self.ask(prompt)
        self._check(outcome)
        return outcome.prompt_tokens

    def _check(self, outcome: Outcome) -> None:
        if outcome.error == NO_CONNECTION:
            raise LoadError(f"cannot reach {self._base}: {outcome.message}; start the server or give its --url")
        if outcome.error == "HTTP 401":
            raise LoadError(f"{self._base} wants a key: give --api-key ({outcome.message})")
        if outcome.error:
            raise LoadError(f"{self._base} did not answer a first request: {outcome.error}: {outcome.message}")

    async def _first_model(self) -> str:
        outcome = Outcome(0.0)
        found: Any = None
        url = self._base + "/v1/models"
        async with _failures(outcome, self.target.timeout), self._session.get(url, allow_redirects=False) as answer:
            found = msgspec.json.decode(await _body(answer))
        self._check(outcome)
        try:
            return msgspec.convert(found, Models).data[0].id
        except (msgspec.ValidationError, LookupError):
            raise LoadError(f"{url} names no model: give --model") from None

    async def tokenize(self, text: str) -> list[int] | None:
        """The text's token ids, where the server has vLLM's or llama.cpp's /tokenize."""
        for name in ("prompt", "content"):
            body = {"model": self.model, name: text, "add_special_tokens": False}
            found: Any = None
            url = self._base + "/tokenize"
            async with _failures(Outcome(0.0), self.target.timeout), self._session.post(url, json=body) as answer:
                found = msgspec.json.decode(await _body(answer))
            tokens = found.get("tokens") if isinstance(found, dict) else None
            if tokens and isinstance(tokens, list) and all(isinstance(token, int) for token in tokens):
                return tokens
        return None

    async def ask(self, prompt: Prompt, outcome: Outcome | None = None) -> Outcome:
        """Send one request and follow its answer; what fails is in the outcome, which fills up meanwhile."""
        outcome = outcome or Outcome(0.0)
        outcome.sent = time.perf_counter()
        async with _failures(outcome, self.target.timeout):
            url = self._base + PATHS[self.target.endpoint]
            async with self._session.post(url, json=self._request(prompt), allow_redirects=False) as answer:
                if answer.content_type == "text/event-stream" and answer.status == 200:
                    await _follow(answer.content, outcome)
                else:
                    _take(decode_answer(await _body(answer)), None, outcome)
            if not outcome.finish_reason:
                raise _Failed("cut off", "the answer ended without a finish_reason")
        outcome.finished = time.perf_counter()
        return outcome

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        content: Any = prompt.content
        if self.target.endpoint == "completions":
            asked = {"prompt": content}
        else:
            asked = {"messages": [{"role": "user", "content": content}] if isinstance(content, str) else content}
        return {
            "model": self.model,
            **asked,
            "max_tokens": prompt.max_tokens,
            "temperature": self.target.temperature,
            "stream": self.target.stream,
            **self._optional,
            **self.target.extra_body,
        }


@asynccontextmanager
async def _failures(outcome: Outcome, seconds: float) -> AsyncIterator[None]:
    """Ends within that time, and turns what goes wrong into the outcome's error."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (Exception, asyncio.CancelledError) as error:
        outcome.error, outcome.message = _explain(error, seconds)
        if not outcome.error:
            raise


def _explain(error: BaseException, timeout: float) -> tuple[str, str]:
    """An error's kind and message; no kind for one that is a mistake of this program."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return NO_CONNECTION, what_failed(error)
    if isinstance(error, TimeoutError):
        return "timeout", f"no complete answer within {timeout:g} s"
    if isinstance(error, asyncio.CancelledError):
        return INTERRUPTED
    if isinstance(error, _Failed):
        return error.kind, str(error)
    if isinstance(error, aiohttp.ClientError | OSError):
        return "connection lost", what_failed(error)
    if isinstance(error, msgspec.DecodeError):
        return "not OpenAI's format", str(error)
    return "", ""


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """The body of a good answer."""
    body = await answer.read()
    if answer.status != 200:
        try:
            message = error_message(msgspec.json.decode(body))
        except msgspec.DecodeError:
            message = body[:200].decode(errors="replace")
        raise _Failed(f"HTTP {answer.status}", redirection(answer) or message or answer.reason or "")
    return body


async def _follow(content: aiohttp.StreamReader, outcome: Outcome) -> None:
    async for events in event_data(content):
        now = time.perf_counter()  # of the read that brought their last bytes
        for data in events:
            if data == b"[DONE]":
                outcome.finish_reason = outcome.finish_reason or "done"
            else:
                _take(decode_answer(data), now, outcome)


def _note(choice: Choice, part: Part, text: bool, now: float, outcome: Outcome) -> None:
    """What a chunk says about time."""
    # An answer may consist of nothing but its end.
    if text or part.tool_calls or (choice.finish_reason and not outcome.times):
        outcome.times.append(now)
    elif part.role is None and not choice.finish_reason:
        outcome.silent.append(now)
    if choice.finish_reason:
        outcome.ended = now


def _take(answer: Answer, now: float | None, outcome: Outcome) -> None:
    """Add what came to the outcome. now: the time, for a part of a stream."""
    if answer.error is not None:
        raise _Failed("error in the answer", error_message(answer.error))
    for choice in answer.choices or []:
        part = choice.delta or choice.message or Part()
        text = "".join(filter(None, (choice.text, part.reasoning or part.reasoning_content, part.content)))
        outcome.text += text
        outcome.finish_reason = choice.finish_reason or outcome.finish_reason
        if now is not None:
            _note(choice, part, bool(text), now, outcome)
    if answer.usage is not None:
        if not outcome.finish_reason:
            outcome.ended = now
        outcome.prompt_tokens = answer.usage.prompt_tokens
        outcome.output_tokens = answer.usage.completion_tokens
        if answer.usage.prompt_tokens_details is not None:
            outcome.cached_tokens = answer.usage.prompt_tokens_details.cached_tokens
        if answer.usage.completion_tokens_details is not None:
            outcome.accepted_tokens = answer.usage.completion_tokens_details.accepted_prediction_tokens
            outcome.rejected_tokens = answer.usage.completion_tokens_details.rejected_prediction_tokens
