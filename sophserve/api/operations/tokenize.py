"""/tokenize, /detokenize and /apply-template: what a prompt becomes, without generating."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.chat_prompt import ChatPrompt
from sophserve.api.generation.prompts import encode
from sophserve.api.generation.request_bodies import ChatRequest, Message
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import NOT_IN_PROMPT, read_body, warn_of, warn_unknown
from sophserve.api.http.errors import ApiError
from sophserve.api.http.json_pieces import respond_json
from sophserve.engine.request_checks import check_ids
from sophserve.errors import RequestError
from sophserve.text.detokenizer import decode_in_slices


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


async def tokenize(request: web.Request) -> web.StreamResponse:
    """The token ids of a text, or of a conversation in the chat template."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, TokenizeRequest)
    served.check_model(body.model)
    if sum(given is not None for given in (body.prompt, body.content, body.messages)) != 1:
        raise RequestError("give one of prompt, messages and content", "prompt")

    def work(chat: ChatPrompt | None) -> dict[str, Any]:
        tokens = chat.tokens(bounded=False).ids if chat else _tokens(served, body)
        entry = served.tokenizer.vocabulary_entry
        return {
            "count": len(tokens),
            "max_model_len": served.engine.info.max_model_len,
            "tokens": tokens,
            "token_strs": list(map(entry, tokens)) if body.return_token_strs else None,
        }

    async with served.admitted(1):
        chat = await served.texts.run(lambda: _chat(served, body)) if body.messages is not None else None
        if chat:
            await chat.load()
        answer = await served.texts.run(partial(work, chat))
    return await respond_json(request, answer, warn_unknown(unknown))


async def detokenize(request: web.Request) -> web.StreamResponse:
    """The text of token ids, special tokens included: `prompt` is vLLM's name for it, `content` llama.cpp's."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, DetokenizeRequest)
    served.check_model(body.model)

    def work() -> str:
        check_ids("tokens", body.tokens, served.engine.info.vocab_size)
        return decode_in_slices(served.tokenizer, body.tokens, skip_special_tokens=False)

    async with served.admitted(1):
        text = await served.texts.run(work)
    return await respond_json(request, {"prompt": text, "content": text}, warn_unknown(unknown))


async def tokenizer_info(request: web.Request) -> web.StreamResponse:
    """The tokenizer's settings, its special tokens and the chat template, as vLLM shows them."""
    served = request.app[SERVED_MODEL]
    if not served.config.enable_tokenizer_info_endpoint:
        raise ApiError(404, "/tokenizer_info is only served with --enable-tokenizer-info-endpoint")
    tokenizer, template = served.tokenizer, served.chat_template.source()
    info = {"tokenizer_class": "PreTrainedTokenizerFast"} | _plain(tokenizer.config) | tokenizer.special_tokens
    return await respond_json(request, info | {"chat_template": template} if template else info)


def _plain(value: Any) -> Any:
    """Settings in which tokens are their texts."""
    if isinstance(value, dict):
        return value["content"] if "content" in value else {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


async def apply_template(request: web.Request) -> web.StreamResponse:
    """A conversation as the text that the model would be asked to continue."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, ConversationRequest)
    served.check_model(body.model)
    async with served.admitted(1):
        chat = await served.texts.run(lambda: _chat(served, body))
        prompt = await served.texts.run(chat.text)
        warn_of(NOT_IN_PROMPT, chat.left_out)
    return await respond_json(request, {"prompt": prompt}, warn_unknown(unknown))


def _tokens(served: ServedModel, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return encode(served, body.prompt, body.add_special_tokens is not False, bounded=False)
    return encode(served, body.content or "", bool(body.add_special), bounded=False)


def _chat(served: ServedModel, body: ConversationRequest) -> ChatPrompt:
    fields = {name: getattr(body, name) for name in ConversationRequest.__struct_fields__}
    return ChatPrompt(served, ChatRequest(**fields | {"messages": body.messages or []}))
