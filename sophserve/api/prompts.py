"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sophserve.api.requests import ChatRequest
from sophserve.api.serving import Serving
from sophserve.errors import RequestError

T = TypeVar("T")

# Shorter texts are done in less time than the thread takes to be heard when others compute.
LONG_TEXT = 10_000


async def encode(serving: Serving, text: str, add_special_tokens: bool) -> list[int]:
    """Token ids of a text. Raises RequestError."""
    return await _in_text_thread(serving, len(text), lambda: _encode(serving, text, add_special_tokens))


async def encode_chat(serving: Serving, messages: list[dict[str, Any]], body: ChatRequest) -> list[int]:
    """Token ids of a conversation in the chat template. Raises RequestError."""
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
        )

    generate = not continued if body.add_generation_prompt is None else body.add_generation_prompt
    kwargs = body.chat_template_kwargs or {}
    for name in ("tools", "documents", "add_generation_prompt", "continue_final_message"):
        if name in kwargs:
            raise RequestError(f"{name} is a field of the request; move it out of chat_template_kwargs", name)

    def work() -> list[int]:
        try:
            text = serving.chat_template.render(
                messages,
                tools=body.tools or None,
                documents=body.documents,
                add_generation_prompt=generate,
                continue_final_message=continued,
                **kwargs,
            )
        except RecursionError:
            raise RequestError("messages are nested too deeply", "messages") from None
        return _encode(serving, text, bool(body.add_special_tokens))

    return await _in_text_thread(serving, sum(map(_length, messages)), work)


def _length(message: dict[str, Any]) -> int:
    content = message.get("content", "")
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


def _encode(serving: Serving, text: str, add_special_tokens: bool) -> list[int]:
    longest = serving.engine.info.max_model_len
    if serving.characters_per_token and len(text) > longest * serving.characters_per_token:
        raise RequestError(
            f"the prompt has {len(text)} characters, at least {len(text) // serving.characters_per_token} tokens, and "
            f"the context {longest}; shorten the prompt",
            "prompt",
            "context_length_exceeded",
        )
    return serving.tokenizer.encode(text, add_special_tokens)


async def _in_text_thread(serving: Serving, characters: int, work: Callable[[], T]) -> T:
    if characters <= LONG_TEXT:
        return work()
    return await asyncio.get_running_loop().run_in_executor(serving.text_thread, work)
