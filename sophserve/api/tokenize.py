"""/tokenize, /detokenize and /apply-template: what a prompt becomes, without generating."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.body import json_response, read_body, warn_unknown
from sophserve.api.chat import template_messages
from sophserve.api.prompts import encode, encode_chat, in_text_thread, render_chat
from sophserve.api.requests import ChatRequest, Message
from sophserve.api.serving import SERVING, Serving
from sophserve.errors import RequestError


class ConversationRequest(msgspec.Struct, kw_only=True):
    """A conversation and how the chat template is to render it; the fields are those of ChatRequest."""

    model: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(ConversationRequest, kw_only=True):
    """vLLM's body, with prompt or messages, or llama.cpp's, with content."""

    prompt: str | None = None
    return_token_strs: bool | None = None
    content: str | None = None
    add_special: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """vLLM's and llama.cpp's body."""

    tokens: list[int]
    model: str | None = None


async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text, or of a conversation in the chat template."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, TokenizeRequest)
    serving.check_model(body.model)
    if sum(given is not None for given in (body.prompt, body.content, body.messages)) != 1:
        raise RequestError("give one of prompt, messages and content", "prompt")
    if body.messages is not None:
        chat = _chat(body)
        tokens = await encode_chat(serving, template_messages(chat.messages), chat, bounded=False)
    elif body.prompt is not None:
        tokens = await encode(serving, body.prompt, body.add_special_tokens is not False, bounded=False)
    else:
        tokens = await encode(serving, body.content or "", bool(body.add_special), bounded=False)
    strings = [serving.tokenizer.vocabulary_entry(token) for token in tokens] if body.return_token_strs else None
    answer = {
        "count": len(tokens),
        "max_model_len": serving.engine.info.max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    }
    return json_response(answer, warn_unknown(unknown))


async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids, special tokens included: `prompt` is vLLM's name for it, `content` llama.cpp's."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, DetokenizeRequest)
    serving.check_model(body.model)
    _check_ids(serving, body.tokens)
    text = await in_text_thread(
        serving, len(body.tokens), lambda: serving.tokenizer.decode(body.tokens, skip_special_tokens=False)
    )
    return json_response({"prompt": text, "content": text}, warn_unknown(unknown))


async def apply_template(request: web.Request) -> web.Response:
    """A conversation as the text that the model would be asked to continue."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, ConversationRequest)
    serving.check_model(body.model)
    chat = _chat(body)
    prompt = await render_chat(serving, template_messages(chat.messages), chat)
    return json_response({"prompt": prompt}, warn_unknown(unknown))


def _chat(body: ConversationRequest) -> ChatRequest:
    fields = {name: getattr(body, name) for name in ConversationRequest.__struct_fields__}
    return ChatRequest(**fields | {"messages": body.messages or []})


def _check_ids(serving: Serving, tokens: list[int]) -> None:
    size = serving.engine.info.vocab_size
    for token in tokens:
        if not 0 <= token < size:
            raise RequestError(f"tokens has the token id {token}; ids go from 0 to {size - 1}", "tokens")
