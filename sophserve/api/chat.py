"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.body import read_body, warn_unknown
from sophserve.api.generation import Answer, Generation
from sophserve.api.logprobs import chat_logprobs, prompt_logprobs
from sophserve.api.params import fitted, sampling_params
from sophserve.api.prompts import encode_chat
from sophserve.api.record import name_request
from sophserve.api.requests import ChatRequest, Message
from sophserve.api.respond import Choice, Reply
from sophserve.api.serving import SERVING, Serving
from sophserve.engine.output import OutputDelta
from sophserve.errors import RequestError
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, ChatRequest)
    model = serving.check_model(body.model)
    params = chat_params(serving, body)
    async with serving.admitted(params.n, body.timeout):
        generation = await chat_generation(serving, body, params, "chatcmpl-")
        style = ChatStyle(serving.tokenizer, params.logprobs is not None)
        return await Reply(request, generation, style, model, warn_unknown(unknown)).send(body)


def chat_params(serving: Serving, body: ChatRequest, max_tokens: int | None = None) -> SamplingParams:
    """The sampling parameters of a chat request, once all is checked that can be checked before its prompt is made.

    max_tokens: a longest answer that is cut to what fits into the context. Raises RequestError.
    """
    defaults = {"max_tokens": None} | serving.sampling_defaults
    if max_tokens is not None:
        defaults["max_tokens"] = max_tokens
    params = sampling_params(body, defaults, _logprobs(body), body.prompt_logprobs)
    _check_tools(body)
    return params


async def chat_generation(serving: Serving, body: ChatRequest, params: SamplingParams, prefix: str) -> Generation:
    """What a chat request asks of the engine, under an id with this prefix. Raises RequestError."""
    prompt = await encode_chat(serving, template_messages(body.messages), body)
    params = fitted(params, body, prompt, serving.engine.info.max_model_len)
    identity = name_request(prefix, body.request_id)
    return Generation(identity, [prompt], [params], body.priority or 0, body.cache_salt or "")


class ChatStyle:
    """Choices with a message, or with a delta of one."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def whole(self, index: int, answer: Answer) -> Choice:
        """A complete choice."""
        choice: Choice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": chat_logprobs(self._tokenizer, answer.logprobs) if self._logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if answer.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answer.prompt_logprobs)
        return choice

    def opening(self, index: int, delta: OutputDelta) -> Choice:
        """The role."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def part(self, index: int, delta: OutputDelta) -> Choice | None:
        """Text, with the logprobs of the tokens that came with it."""
        if not delta.text and not delta.logprobs:
            return None
        choice = self._chunk(index, {"content": delta.text})
        if delta.logprobs:
            choice["logprobs"] = chat_logprobs(self._tokenizer, delta.logprobs)
        return choice

    def closing(self, index: int, delta: OutputDelta) -> Choice:
        """Why the choice ended."""
        choice = self._chunk(index, {})
        return {**choice, "finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def _chunk(self, index: int, delta: dict[str, Any]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return None


def _check_tools(body: ChatRequest) -> None:
    if body.tool_choice not in (None, "none", "auto"):
        raise RequestError("a tool_choice other than none is not supported", "tool_choice")
    if body.tools and body.tool_choice != "none":
        raise RequestError(
            "calling tools is not supported; with tool_choice none they are only shown to the model", "tools"
        )


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """A conversation for the chat template. Raises RequestError."""
    if not messages:
        raise RequestError("messages is empty; give at least one", "messages")
    return [_to_template(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _to_template(message: Message, path: str) -> dict[str, Any]:
    """The message for the chat template; only text may be in it."""
    if message.content is None and message.role != "assistant":
        raise RequestError(f"{path}.content: is missing", f"{path}.content")
    parts = message.content if isinstance(message.content, list) else []
    for index, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            name = f"{path}.content[{index}]"
            raise RequestError(f"{name}: this model reads parts of type text only, got {part.type!r}", name)
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return fields
