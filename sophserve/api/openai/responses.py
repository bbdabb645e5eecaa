"""/v1/responses: OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from sophserve.api.generation.answer_pump import Reply, send_answer
from sophserve.api.generation.chat import Chat, prompt_length
from sophserve.api.generation.request_bodies import ChatRequest, Message
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import LEFT_OUT, WITHOUT_EFFECT, json_response, read_body, warn_of, warn_unknown
from sophserve.api.http.errors import ApiError
from sophserve.api.http.json_pieces import pieces
from sophserve.api.http.request_record import current_record
from sophserve.api.http.upload import MAX_BODY_BYTES
from sophserve.api.openai.response_input import InputRequest, ResponsesRequest, conversation_of, function_tools
from sophserve.api.openai.response_output import ResponseWriter
from sophserve.api.openai.response_store import RESPONSES, ResponseStore, StoredResponse, joined, messages_of
from sophserve.errors import RequestError

_SAME_NAME = [name for name in ResponsesRequest.__struct_fields__ if name in ChatRequest.__struct_fields__]


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, which may go on from an answer that is stored."""
    body, unknown = await read_body(request, ResponsesRequest)
    async with response_answer(request.app, body) as reply:
        return await send_answer(request, reply, body.stream, warn_unknown(unknown))


@asynccontextmanager
async def response_answer(app: web.Application, body: ResponsesRequest) -> AsyncIterator[Reply]:
    """The answer to a conversation, which is stored unless that is not wanted. See Begin."""
    served, responses = app[SERVED_MODEL], app[RESPONSES]
    model = served.check_model(body.model)
    if body.background:
        raise RequestError("background is not supported; leave it out and wait for the answer", "background")
    _check_supported(body)
    idle = {"text.verbosity": body.text and body.text.verbosity, "truncation": body.truncation == "auto"}
    warn_of(WITHOUT_EFFECT, [name for name, given in idle.items() if given])
    before = _stored(responses, body.previous_response_id)
    chat, conversation = await served.texts.run(lambda: _chat_of(served, body, before))
    async with served.admitted(1, body.timeout):
        generation = await chat.generation("resp_")
        writer = ResponseWriter(chat, model, body, generation, served.tokenizer)

        def record() -> StoredResponse:
            said = msgspec.json.encode([writer.said()])
            return StoredResponse(b"".join(pieces(writer.whole())), joined(conversation, said))

        async def store() -> None:
            # Before the last event goes out, as the client may go on at once.
            if body.store is not False:
                size = len(conversation) + sum(len(part.text) for part in writer.parts)
                responses.add(writer.id, await served.texts.run(record, size))

        yield Reply(generation, writer, store)


async def get_response(request: web.Request) -> web.Response:
    """A response that is stored."""
    identity = request.match_info["id"]
    stored = request.app[RESPONSES].get(identity)
    if stored is None:
        raise _not_found(identity)
    return web.Response(body=stored.body, content_type="application/json")


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response."""
    identity = request.match_info["id"]
    if not request.app[RESPONSES].delete(identity):
        raise _not_found(identity)
    return json_response({"id": identity, "object": "response", "deleted": True})


async def count_input_tokens(request: web.Request) -> web.Response:
    """How many tokens the prompt of a request would have."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, InputRequest)
    served.check_model(body.model)
    _check_supported(body)
    before = _stored(request.app[RESPONSES], body.previous_response_id)

    def work() -> int:
        chat = _as_chat(body, messages_of(before) + conversation_of(body.input))
        chat.chat_template_kwargs = body.chat_template_kwargs
        return prompt_length(served, chat)

    async with served.admitted(1):
        count = await served.texts.run(work)
        return json_response({"object": "response.input_tokens", "input_tokens": count}, warn_unknown(unknown))


def _check_supported(body: InputRequest) -> None:
    """Raise RequestError for what is kept by OpenAI's servers only, and name the tools that are no functions, most of
    which only they can run."""
    for name in ("prompt", "conversation"):
        if getattr(body, name):
            raise RequestError(f"{name} is not supported; send its text as input", name, "unsupported_parameter")
    warn_of(LEFT_OUT, [kind for tool in body.tools or [] if (kind := str(tool.get("type"))) != "function"])


def _chat_of(served: ServedModel, body: ResponsesRequest, before: bytes) -> tuple[Chat, bytes]:
    """The request as chat completions have it, and the conversation that its answer is stored with. Raises
    RequestError."""
    said = conversation_of(body.input)
    stored = joined(before, msgspec.json.encode(said)) if body.store is not False else b""
    chat = _as_chat(body, messages_of(before) + said)
    for name in set(_SAME_NAME) - {"model", "tools", "tool_choice"}:
        setattr(chat, name, getattr(body, name))
    if body.text and body.text.format:
        chat.response_format = body.text.format.response_format()
    if body.wants_logprobs:
        chat.logprobs = True
    return Chat(served, chat, body.max_output_tokens), stored


def _stored(responses: ResponseStore, identity: str | None) -> bytes:
    """The conversation so far, without the instructions, which hold for one answer only. Raises RequestError."""
    if identity is None:
        return b"[]"
    stored = responses.get(identity)
    if stored is None:
        raise RequestError(
            f"the previous response {identity!r} is not stored any more; send the whole conversation as input",
            "previous_response_id",
            "previous_response_not_found",
        )
    record = current_record.get()
    record.body_bytes += len(stored.conversation)
    if record.body_bytes > MAX_BODY_BYTES:
        raise RequestError(
            f"the conversation has more than {MAX_BODY_BYTES >> 20} MiB; begin a new one", "previous_response_id"
        )
    return stored.conversation


def _as_chat(body: InputRequest, conversation: list[Message]) -> ChatRequest:
    """The same conversation as chat completions have it."""
    if body.instructions:
        conversation = [Message("system", body.instructions), *conversation]
    chat = ChatRequest(messages=_one_system_message(conversation))
    chat.tools, chat.tool_choice = function_tools(body)
    chat.reasoning_effort = body.reasoning.effort if body.reasoning else None
    return chat


def _one_system_message(messages: list[Message]) -> list[Message]:
    """The system messages at the beginning become one: most templates take no second one."""
    count = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    texts = [
        message.content if isinstance(message.content, str) else "\n".join(part.text or "" for part in message.content)
        for message in messages[:count]
        if message.content
    ]
    return [Message("system", "\n\n".join(texts)), *messages[count:]] if count > 1 else messages


def _not_found(identity: str) -> ApiError:
    return ApiError(404, f"there is no response {identity!r}; it was not stored, or is forgotten", code="not_found")
