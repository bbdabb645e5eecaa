"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from sophserve.api.requests import ChatRequest, GenerationRequest
from sophserve.api.serving import Serving
from sophserve.errors import CheckpointError, RequestError
from sophserve.sampling import SamplingParams
from sophserve.text.chat_template import ChatTemplate

log = logging.getLogger(__name__)
T = TypeVar("T")

# Shorter texts are done in less time than the thread takes to be heard when others compute.
LONG_TEXT = 10_000
_LOGGED_TOKENS = 2048
_TRUNCATE = "truncate_prompt_tokens"


def listed(prompt: str | list[str | int | list[int]], name: str) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids, from the field of that name. Raises RequestError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError(f"{name} is empty; give a text or token ids", name)
    if all(isinstance(item, int) for item in prompt):
        return [prompt]  # type: ignore[list-item]
    if any(isinstance(item, int) for item in prompt):
        raise RequestError(f"{name} mixes token ids with texts or lists; give one kind", name)
    return prompt  # type: ignore[return-value]


async def encode(serving: Serving, text: str, add_special_tokens: bool, bounded: bool = True) -> list[int]:
    """Token ids of a text. Raises RequestError; if bounded, for one that cannot fit in the context, too."""
    return await in_text_thread(serving, len(text), lambda: _encode(serving, text, add_special_tokens, bounded))


async def encode_chat(
    serving: Serving, messages: list[dict[str, Any]], body: ChatRequest, bounded: bool = True
) -> list[int]:
    """Token ids of a conversation in the chat template. Raises RequestError as encode does."""
    render = _renderer(serving, messages, body)
    bounded = bounded and body.truncate_prompt_tokens is None

    def work() -> list[int]:
        tokens = _encode(serving, render(), bool(body.add_special_tokens), bounded)
        return truncated(tokens, body, serving.engine.info.max_model_len)

    return await in_text_thread(serving, sum(map(_length, messages)), work)


async def render_chat(serving: Serving, messages: list[dict[str, Any]], body: ChatRequest) -> str:
    """A conversation in the chat template, as text. Raises RequestError."""
    return await in_text_thread(serving, sum(map(_length, messages)), _renderer(serving, messages, body))


def log_prompts(
    serving: Serving, identity: str, prompts: list[list[int]], params: SamplingParams | None = None
) -> None:
    """Log what a request asks of the model, where the operator wants that."""
    if not serving.config.log_requests:
        return
    for prompt in prompts:
        text = serving.tokenizer.decode(prompt[:_LOGGED_TOKENS], skip_special_tokens=False)
        more = f" and {len(prompt) - _LOGGED_TOKENS} further tokens" if len(prompt) > _LOGGED_TOKENS else ""
        fields = {"id": identity, "prompt": text, "params": msgspec.to_builtins(params)}
        log.info("%s asks %r%s, %s", identity, text, more, fields["params"], extra={"fields": fields})


def truncated(prompt: list[int], body: GenerationRequest, context: int) -> list[int]:
    """What truncate_prompt_tokens leaves of a prompt; -1 leaves as many tokens as fit beside the answer. Raises
    RequestError."""
    answer = body.max_new_tokens or body.max_completion_tokens or body.max_tokens or 1
    return cut(prompt, body.truncate_prompt_tokens, body.truncation_side or "left", max(1, context - answer))


def cut(prompt: list[int], most: int | None, side: str, fitting: int) -> list[int]:
    """The last `most` tokens, or with side right the first ones; None is all, -1 as many as are fitting. Raises
    RequestError."""
    if side not in ("left", "right"):
        raise RequestError(f"truncation_side must be left or right, got {side!r}", "truncation_side")
    if most is None:
        return prompt
    if most < 1 and most != -1:
        raise RequestError(f"truncate_prompt_tokens must be at least 1, or -1 for what fits, got {most}", _TRUNCATE)
    most = fitting if most == -1 else most
    return prompt[:most] if side == "right" else prompt[-most:]


def _renderer(serving: Serving, messages: list[dict[str, Any]], body: ChatRequest) -> Callable[[], str]:
    """Check the template's options now; the function that is returned renders."""
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
        )

    if body.chat_template is not None and not serving.config.trust_request_chat_template:
        raise RequestError(
            "chat_template is only taken by a server that was started with --trust-request-chat-template; leave it out",
            "chat_template",
        )
    generate = not continued if body.add_generation_prompt is None else body.add_generation_prompt
    kwargs = _effort(body) | (body.chat_template_kwargs or {})
    for name in ("tools", "documents", "add_generation_prompt", "continue_final_message"):
        if name in kwargs:
            raise RequestError(f"{name} is a field of the request; move it out of chat_template_kwargs", name)

    def render() -> str:
        try:
            return _template(serving, body).render(
                messages,
                tools=body.tools or None,
                documents=body.documents,
                add_generation_prompt=generate,
                continue_final_message=continued,
                **kwargs,
            )
        except RecursionError:
            raise RequestError("messages are nested too deeply", "messages") from None

    return render


def _effort(body: ChatRequest) -> dict[str, Any]:
    """How much the model is to think, in the words of templates that know of it: most can only turn it on or off."""
    effort = body.reasoning_effort
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _template(serving: Serving, body: ChatRequest) -> ChatTemplate:
    """The request's own chat template, where the server trusts it, else the server's."""
    if body.chat_template is None:
        return serving.chat_template
    try:
        return ChatTemplate({"default": body.chat_template}, serving.tokenizer.special_tokens)
    except CheckpointError as error:
        raise RequestError(f"chat_template: {error}", "chat_template") from None


def _length(message: dict[str, Any]) -> int:
    content = message.get("content", "")
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


def _encode(serving: Serving, text: str, add_special_tokens: bool, bounded: bool) -> list[int]:
    longest = serving.engine.info.max_model_len
    if bounded and serving.characters_per_token and len(text) > longest * serving.characters_per_token:
        raise RequestError(
            f"the prompt has {len(text)} characters, at least {len(text) // serving.characters_per_token} tokens, and "
            f"the context {longest}; shorten the prompt",
            "prompt",
            "context_length_exceeded",
        )
    return serving.tokenizer.encode(text, add_special_tokens)


async def in_text_thread(serving: Serving, characters: int, work: Callable[[], T]) -> T:
    """What work returns; done in the thread for texts if there are that many characters to go through."""
    if characters <= LONG_TEXT:
        return work()
    return await asyncio.get_running_loop().run_in_executor(serving.text_thread, work)
