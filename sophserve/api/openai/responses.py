"""/v1/responses: OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from sophserve.api.generation.answer_pump import Reply, send_answer
from sophserve.api.generation.chat import Chat, prompt_length
from sophserve.api.generation.content import image_parts
from sophserve.api.generation.request_bodies import ChatRequest, Message
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import (
    ITEMS_LEFT_OUT,
    LEFT_OUT,
    WITHOUT_EFFECT,
    json_response,
    read_body,
    warn_of,
    warn_unknown,
)
from sophserve.api.http.event_stream import send_events
from sophserve.api.http.json_pieces import pieces, respond_json
from sophserve.api.http.request_record import current_record
from sophserve.api.http.upload import MAX_BODY_BYTES
from sophserve.api.openai.background import BACKGROUND
from sophserve.api.openai.conversations import find_conversation
from sophserve.api.openai.kept_items import Items, items_of, kept_items, size_of
from sophserve.api.openai.response_input import (
    InputRequest,
    InputTokensRequest,
    ResponsesRequest,
    function_tools,
    offered_types,
    only_described,
)
from sophserve.api.openai.response_items import conversation_of, left_out
from sophserve.api.openai.response_output import ResponseWriter
from sophserve.api.openai.response_store import STORE, Conversation, ResponseStore, StoredResponse
from sophserve.errors import RequestError

_SAME_NAME = [name for name in ResponsesRequest.__struct_fields__ if name in ChatRequest.__struct_fields__]


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, which may go on from an answer that is stored."""
    body, unknown = await read_body(request, ResponsesRequest)
    if body.background:
        if body.store is False:
            raise RequestError("background needs store: the response is asked for by its id later", "background")
        response = await request.app[BACKGROUND].start(body)
        if response.log:
            return await send_events(request, response.log.follow(0), warn_unknown(unknown))
        return await respond_json(request, response.writer.whole(), warn_unknown(unknown))
    async with response_answer(request.app, body) as reply:
        return await send_answer(request, reply, body.stream, warn_unknown(unknown))


@asynccontextmanager
async def response_answer(app: web.Application, body: ResponsesRequest) -> AsyncIterator[Reply]:
    """The answer to a conversation, which is stored unless that is not wanted. See Begin."""
    served, store = app[SERVED_MODEL], app[STORE]
    model = served.check_model(body.model)
    _check_supported(served, body)
    idle = {"text.verbosity": body.text and body.text.verbosity, "truncation": body.truncation == "auto"}
    warn_of(WITHOUT_EFFECT, [name for name, given in idle.items() if given])
    before = _before(store, body)
    chat, new = await served.texts.run(lambda: _chat_of(served, body, before))
    async with served.admitted(1, body.timeout):
        generation = await chat.generation("resp_")
        writer = ResponseWriter(chat, model, body, before | new, generation, served.tokenizer)

        def record() -> StoredResponse:
            return StoredResponse(b"".join(pieces(writer.whole())), writer.given, writer.said())

        async def finish() -> None:
            # Before the last event goes out, as the client may go on at once.
            size = size_of(writer.given) + sum(len(part.text) for part in writer.parts)
            stored = await served.texts.run(record, size)
            if body.store is not False:
                store.add(writer.id, stored)
            conversation = body.conversation_id and store.get(body.conversation_id, Conversation)
            if conversation and writer.status in ("completed", "incomplete"):
                conversation.items |= new | stored.said
                store.add(conversation.id, conversation)

        keep = body.store is not False or body.conversation_id
        yield Reply(generation, writer, finish if keep else None)


async def count_input_tokens(request: web.Request) -> web.Response:
    """How many tokens the prompt of a request would have."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, InputTokensRequest)
    body.input = body.input or []
    served.check_model(body.model)
    _check_supported(served, body)
    idle = {"truncation": body.truncation == "auto", "personality": body.personality}
    warn_of(WITHOUT_EFFECT, [name for name, given in idle.items() if given])
    before = _before(request.app[STORE], body)

    def asked() -> ChatRequest:
        chat = _as_chat(served, body, _messages(before, body))
        chat.chat_template_kwargs = body.chat_template_kwargs
        return chat

    async with served.admitted(1):
        count = await prompt_length(served, asked)
        return json_response({"object": "response.input_tokens", "input_tokens": count}, warn_unknown(unknown))


def _check_supported(served: ServedModel, body: InputRequest) -> None:
    """Raise RequestError for prompts, which OpenAI's servers keep, and name what else is of use to them alone."""
    if body.prompt:
        raise RequestError("prompt is not supported; send its text as input", "prompt", "unsupported_parameter")
    types = offered_types(served)
    warn_of(LEFT_OUT, [kind for tool in body.tools or [] if (kind := str(tool.get("type"))) not in types])
    warn_of(WITHOUT_EFFECT, only_described(body.tools))
    warn_of(ITEMS_LEFT_OUT, left_out(body.input))


def _chat_of(served: ServedModel, body: ResponsesRequest, before: Items) -> tuple[Chat, Items]:
    """The request as chat completions have it, and what it adds to the items before, as it is kept. Raises
    RequestError."""
    kept = kept_items(body.input, before) if body.store is not False or body.conversation else {}
    chat = _as_chat(served, body, _messages(before, body))
    for name in set(_SAME_NAME) - {"model", "tools", "tool_choice"}:
        setattr(chat, name, getattr(body, name))
    if body.text and body.text.format:
        chat.response_format = body.text.format.response_format()
    if body.wants_logprobs:
        chat.logprobs = True
    return Chat(served, chat, body.max_output_tokens), kept


def _messages(before: Items, body: InputRequest) -> list[Message]:
    """The whole conversation. Raises RequestError."""
    return conversation_of(items_of(before), "conversation") + conversation_of(body.input)


def _before(store: ResponseStore, body: InputRequest) -> Items:
    """What a request goes on from, without the instructions, which hold for one answer only. Raises RequestError."""
    previous, conversation = body.previous_response_id, body.conversation_id
    if previous and conversation:
        raise RequestError("previous_response_id and conversation exclude each other; send one of them", "conversation")
    if previous:
        response = store.get(previous, StoredResponse)
        if response is None:
            raise RequestError(
                f"the previous response {previous!r} is not stored any more; send the whole conversation as input",
                "previous_response_id",
                "previous_response_not_found",
            )
        items = response.given | response.said
    elif conversation:
        items = find_conversation(store, conversation).items.copy()
    else:
        return {}
    record = current_record.get()
    record.body_bytes += size_of(items)
    if record.body_bytes > MAX_BODY_BYTES:
        raise RequestError(f"the conversation has more than {MAX_BODY_BYTES >> 20} MiB; begin a new one", "input")
    return items


def _as_chat(served: ServedModel, body: InputRequest, conversation: list[Message]) -> ChatRequest:
    """The same conversation as chat completions have it."""
    if body.instructions:
        conversation = [Message("system", body.instructions), *conversation]
    chat = ChatRequest(messages=_one_system_message(conversation))
    chat.tools, chat.tool_choice = function_tools(body, offered_types(served))
    chat.reasoning_effort = body.reasoning.effort if body.reasoning else None
    return chat


def _one_system_message(messages: list[Message]) -> list[Message]:
    """The system messages at the beginning become one: most templates take no second one."""
    count = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    if any(image_parts(message.content) for message in messages[:count]):
        return messages
    texts = [
        message.content if isinstance(message.content, str) else "\n".join(part.text or "" for part in message.content)
        for message in messages[:count]
        if message.content
    ]
    return [Message("system", "\n\n".join(texts)), *messages[count:]] if count > 1 else messages
