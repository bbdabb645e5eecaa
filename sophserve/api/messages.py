"""/v1/messages: Anthropic's Messages API (https://docs.anthropic.com/en/api/messages) over the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.body import json_response, read_body, warn_unknown
from sophserve.api.chat import chat_generation, chat_params, template_messages
from sophserve.api.events import Event, Exchange, OutputFormat, refuse_tool_calls
from sophserve.api.prompts import encode_chat
from sophserve.api.requests import ChatRequest, ContentPart, Message
from sophserve.api.respond import Usage
from sophserve.api.serving import SERVING
from sophserve.engine.output import OutputDelta
from sophserve.errors import RequestError


class Block(msgspec.Struct):
    """A part of a turn: text, thinking, a call of a tool (tool_use) or what it gave (tool_result)."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None


class Turn(msgspec.Struct):
    """What one side said."""

    role: str
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool that the model is shown."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct):
    """auto, any, none, or tool with its name."""

    type: str
    name: str | None = None


class Thinking(msgspec.Struct):
    """enabled or disabled, for templates that know enable_thinking."""

    type: str


class OutputConfig(msgspec.Struct):
    """format: the form that the answer must have."""

    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/messages/count_tokens."""

    messages: list[Turn]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None


async def messages(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, MessagesRequest)
    model = serving.check_model(body.model)
    chat = _chat(body)
    chat.stop, chat.temperature, chat.top_p, chat.top_k = body.stop_sequences, body.temperature, body.top_p, body.top_k
    refuse_tool_calls(chat)
    params = chat_params(serving, chat, body.max_tokens)
    async with serving.admitted(1):
        generation = await chat_generation(serving, chat, params, "msg_")
        exchange = Exchange(request, generation, warn_unknown(unknown))
        writer = MessageWriter(generation.id, model, exchange.usage)
        if body.stream:
            return await exchange.stream(writer.events)
        answer = await exchange.whole()
        content = [{"type": "text", "text": answer.text}] if answer.text else []
        ending = _ending(answer.finish_reason, answer.stop_reason)
        return exchange.respond({**writer.message(content), **ending})


async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens the prompt of a conversation has."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, CountRequest)
    serving.check_model(body.model)
    chat = _chat(body)
    tokens = await encode_chat(serving, template_messages(chat.messages), chat, bounded=False)
    return json_response({"input_tokens": len(tokens)}, warn_unknown(unknown))


class MessageWriter:
    """Turns what an answer gains into Anthropic's events."""

    def __init__(self, identity: str, model: str, usage: Usage) -> None:
        self._identity = identity
        self._model = model
        self._usage = usage
        self._started = False
        self._in_text = False

    def message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The message object, without how it ended."""
        return {
            "id": self._identity,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._tokens(),
        }

    def events(self, delta: OutputDelta) -> Iterator[Event]:
        """The events that a delta makes."""
        if not self._started:
            self._started = True
            yield {"type": "message_start", "message": self.message([])}
        if delta.text:
            if not self._in_text:
                self._in_text = True
                yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": delta.text}}
        if delta.finish_reason:
            if self._in_text:
                yield {"type": "content_block_stop", "index": 0}
            ending = _ending(delta.finish_reason, delta.stop_reason)
            yield {"type": "message_delta", "delta": ending, "usage": self._tokens()}
            yield {"type": "message_stop"}

    def _tokens(self) -> dict[str, int]:
        # Anthropic does not count what the cache held as input.
        cached = self._usage.cached_tokens
        return {
            "input_tokens": self._usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._usage.output_tokens,
        }


def _ending(finish_reason: str | None, stop_reason: int | str | None) -> dict[str, str | None]:
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _chat(body: CountRequest) -> ChatRequest:
    """The same conversation as chat completions have it. Raises RequestError."""
    conversation: list[Message] = []
    if body.system:
        conversation.append(Message("system", _texts(body.system, "system")))
    for index, turn in enumerate(body.messages):
        path = f"messages[{index}]"
        if turn.role not in ("user", "assistant", "system"):
            raise RequestError(f"{path}.role must be user or assistant, got {turn.role!r}", f"{path}.role")
        conversation += _turn(turn, path)
    last = body.messages[-1] if body.messages else None
    chat = ChatRequest(messages=conversation)
    chat.continue_final_message = bool(
        last and last.role == "assistant" and conversation[-1].content and not conversation[-1].tool_calls
    )
    chat.tools = [_function(tool) for tool in body.tools or []]
    chat.tool_choice = _tool_choice(body.tool_choice)
    if body.output_config and body.output_config.format:
        chat.response_format = body.output_config.format.response_format()
    if body.thinking:
        chat.chat_template_kwargs = {"enable_thinking": body.thinking.type != "disabled"}
    return chat


def _turn(turn: Turn, path: str) -> Iterator[Message]:
    """What tools gave are messages of their own, before what the user says to it."""
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    said = Message(turn.role)
    parts = []
    for index, block in enumerate(turn.content):
        where = f"{path}.content[{index}]"
        match block.type:
            case "tool_result":
                yield Message("tool", _texts(block.content or "", f"{where}.content"), tool_call_id=block.tool_use_id)
            case "tool_use":
                function = {"name": block.name, "arguments": block.input or {}}
                call = {"id": block.id, "type": "function", "function": function}
                said.tool_calls = [*(said.tool_calls or []), call]
            case "thinking":
                said.reasoning_content = (said.reasoning_content or "") + (block.thinking or "")
            case "redacted_thinking":
                pass  # what no one can read
            case _:
                parts.append(ContentPart("text", _text(block, where)))
    said.content = parts or None
    if parts or said.tool_calls or not turn.content:
        yield said


def _texts(content: str | list[Block], path: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [ContentPart("text", _text(block, f"{path}[{index}]")) for index, block in enumerate(content)]


def _text(block: Block, path: str) -> str:
    if block.type != "text" or block.text is None:
        raise RequestError(f"{path}: this model reads blocks of type text only, got {block.type!r}", path)
    return block.text


def _function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema or {}}
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in names:
        raise RequestError(f"tool_choice.type must be auto, any, tool or none, got {choice.type!r}", "tool_choice.type")
    return names[choice.type]
