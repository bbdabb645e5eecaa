"""Asks an OpenAI-compatible server, over TCP or the socket of a model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec

from sophserve.errors import SophserveError
from sophserve.http_client import event_data, key_header, redirection, what_failed
from sophserve.openai_answers import Choice, Model, Models, Part, PromptDetails, Usage, decode_answer, error_message

_MODELS_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=10)
Message = dict[str, Any]


class ChatError(SophserveError):
    """The server cannot be reached, or refuses."""


class NotListening(ChatError):
    """Nothing answers at the address."""


@dataclass(frozen=True)
class Piece:
    """What an answer gains; the last one says what it took."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class Client:
    """Use as an asynchronous context. model: what is asked for, to be chosen later unless it is given. socket: the Unix
    socket of the server, if it has one."""

    def __init__(
        self, url: str, api_key: str | None = None, model: str | None = None, socket: Path | None = None
    ) -> None:
        self.url = url
        self.model = model or ""
        self.blind = False  # whether the server says that the model takes no pictures
        self._headers = key_header(api_key)
        self._socket = socket

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            connector=aiohttp.UnixConnector(str(self._socket)) if self._socket else None,
            read_bufsize=2**20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def models(self, waiting: Callable[[str], None]) -> list[Model]:
        """The server's models, once it is ready; waiting is told why it is not. Raises ChatError."""
        while True:
            async with await self._request("GET", "/v1/models", timeout=_MODELS_TIMEOUT) as response:
                text = await self._read(response)
                if response.status != 503:
                    break
                waiting(_reason(text, response.status))
            await asyncio.sleep(0.5)
        self._check(response, text)
        try:
            return msgspec.json.decode(text, type=Models).data
        except msgspec.DecodeError:
            raise ChatError(f"{self.url}/v1/models is not a list of models; check --url") from None

    def choose(self, model: Model) -> None:
        """Ask this model from now on."""
        self.model, self.blind = model.id, not model.sees

    async def stream(self, messages: list[Message], parameters: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """The answer as it comes. Closing the generator ends it on the server, too. Raises ChatError."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": self.model, "messages": messages, **options, **parameters}
        async with await self._request("POST", "/v1/chat/completions", json=body) as response:
            if response.status != 200 or response.content_type == "application/json":
                text = await self._read(response)
                self._check(response, text)
                yield _piece(text)  # of a server that knows no streams
                return
            ended = False
            try:
                async for events in event_data(response.content):
                    for data in events:
                        if data == b"[DONE]":
                            ended = True
                            continue
                        piece = _piece(data)
                        ended = ended or piece.finish_reason is not None
                        yield piece
            except (aiohttp.ClientError, OSError) as error:
                raise ChatError(f"the connection broke off: {what_failed(error)}") from None
            if not ended:
                raise ChatError("the answer broke off: the server ended it without a reason")

    async def _request(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        try:
            return await self._session.request(method, self.url + path, allow_redirects=False, **options)
        except aiohttp.ClientSSLError as error:
            raise ChatError(f"cannot reach {self.url}: {what_failed(error)}") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise NotListening(f"nothing answers at {self.url}; check --url, or start a server there") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ChatError(f"{self.url} does not answer as a server should: {what_failed(error)}") from None

    @staticmethod
    async def _read(response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ChatError(f"the connection broke off: {what_failed(error)}") from None

    def _check(self, response: aiohttp.ClientResponse, text: bytes) -> None:
        """Raise ChatError for an answer that is none."""
        if response.status == 401:
            raise ChatError(f"{self.url} wants a key: give --api-key ({_reason(text, 401)})")
        if response.status != 200:
            raise ChatError(redirection(response) or _reason(text, response.status))


def _piece(data: bytes) -> Piece:
    try:
        answer = decode_answer(data)
    except msgspec.DecodeError:
        raise ChatError(f"the server sent what is no chunk of an answer: {data[:100]!r}") from None
    if answer.error:
        raise ChatError(_reason(data, 500))
    choice = answer.choices[0] if answer.choices else Choice()
    part, usage = choice.delta or choice.message or Part(), answer.usage or Usage()
    details = usage.prompt_tokens_details or PromptDetails()
    return Piece(
        part.content or "",
        part.reasoning or part.reasoning_content or "",
        choice.finish_reason,
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        details.cached_tokens or 0,
    )


def _reason(text: bytes, status: int) -> str:
    """What an error's body says."""
    try:
        found = error_message(msgspec.json.decode(text))
    except msgspec.DecodeError:
        found = ""
    return found or f"the server answers with HTTP status {status}"
