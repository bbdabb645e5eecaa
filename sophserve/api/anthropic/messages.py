"""/v1/messages: Anthropic's Messages API (https://docs.anthropic.com/en/api/messages) over the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.anthropic.turns import Block, Turn, left_out, messages_of, spoken
from sophserve.api.generation.answer_parts import Named, Part, PartWriter
from sophserve.api.generation.answer_pump import Reply, send_answer
from sophserve.api.generation.chat import Chat, prompt_length
from sophserve.api.generation.params import check_texts
from sophserve.api.generation.request_bodies import ChatRequest, Message, OutputFormat
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import ITEMS_LEFT_OUT, LEFT_OUT, checked, json_response, read_body, warn_of, warn_unknown
from sophserve.engine.output import OutputDelta
from sophserve.errors import RequestError

_OWN_TOOLS = (None, "custom")
_THINKING = ("enabled", "adaptive", "between_tools", "disabled")


class Tool(msgspec.Struct):
    """A tool that the model may call. input_examples: arguments to learn from."""

    name: str
    strict: bool | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    input_examples: list[dict[str, Any]] | None = None


class ToolChoice(msgspec.Struct):
    """auto, any, none, or tool with its name."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """enabled, adaptive or disabled, for templates that know enable_thinking. display: omitted leaves the text out."""

    type: str
    display: str | None = None


class OutputConfig(msgspec.Struct):
    """format: the form that the answer must have. effort: how much to think, for templates that know of it."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/messages/count_tokens. tools: those of a type that only Anthropic describes or runs are left
    out."""

    messages: list[Turn]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


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
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, MessagesRequest)
    model = served.check_model(body.model)
    _warn(body)
    chat = await served.texts.run(lambda: _chat_of(served, body))
    async with served.admitted(1):
        generation = await chat.generation("msg_")
        shown = body.thinking is None or body.thinking.display != "omitted"
        writer = MessageWriter(chat, model, generation, shown)
        return await send_answer(request, Reply(generation, writer), body.stream, warn_unknown(unknown))


async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens the prompt of a conversation has."""
    served = request.app[SERVED_MODEL]
    body, unknown = await read_body(request, CountRequest)
    served.check_model(body.model)
    _warn(body)
    async with served.admitted(1):
        count = await prompt_length(served, lambda: _as_chat(body))
        return json_response({"input_tokens": count}, warn_unknown(unknown))


class MessageWriter(PartWriter):
    """Words an answer as Anthropic's message and events. show_thinking: whether to give out the text of reasoning."""

    def __init__(self, chat: Chat, model: str, generation: Generation, show_thinking: bool) -> None:
        super().__init__(chat, "toolu_")
        self._model = model
        self._generation = generation
        self._show_thinking = show_thinking
        self._started = False
        self._ending = _ending(None)

    def whole(self) -> dict[str, Any]:
        return {
            "id": self._generation.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(map(self._block, self._whole_parts())),
            **self._ending,
            "usage": self._tokens(),
        }

    def named_events(self, delta: OutputDelta) -> Iterator[Named]:
        if not self._started:
            self._started = True
            yield {"type": "message_start", "message": self.whole()}
        for event in self._parsed(delta):
            yield from self._take(event)
        if delta.finish_reason:
            yield from self._end_last()
            self._ending = self._ended(delta)
            yield {"type": "message_delta", "delta": self._ending, "usage": self._tokens()}
            yield {"type": "message_stop"}

    def _whole_parts(self) -> list[Part]:
        """The parts, with its text in place of a call that was broken off: there is no input of half a call."""
        parts: list[Part] = []
        for part in self.parts:
            part = part if part.broken is None else Part("text", part.broken)
            if parts and part.kind == parts[-1].kind == "text":
                parts[-1] = Part("text", parts[-1].text + part.text)
            elif part.kind != "text" or part.text:
                parts.append(part)
        return parts

    def _begin(self, part: Part) -> Iterator[Named]:
        block = self._block(part)
        if part.kind == "reasoning":
            block["signature"] = ""
        yield {"type": "content_block_start", "index": len(self.parts) - 1, "content_block": block}

    def _gain(self, part: Part, text: str) -> Iterator[Named]:
        match part.kind:
            case "text":
                yield self._delta("text_delta", text=text)
            case "call":
                yield self._delta("input_json_delta", partial_json=text)
            case "reasoning" if self._show_thinking:
                yield self._delta("thinking_delta", thinking=text)

    def _end(self, part: Part) -> Iterator[Named]:
        if part.kind == "reasoning":
            yield self._delta("signature_delta", signature=_signature(part))
        yield {"type": "content_block_stop", "index": len(self.parts) - 1}

    def _delta(self, kind: str, **fields: str) -> Named:
        return {"type": "content_block_delta", "index": len(self.parts) - 1, "delta": {"type": kind, **fields}}

    def _block(self, part: Part) -> dict[str, Any]:
        match part.kind:
            case "text":
                return {"type": "text", "text": part.text}
            case "call":
                # As it was written: what JSON can say is more than what Python's values can.
                arguments = msgspec.Raw(part.text.encode() or b"{}")
                return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments}
        text = part.text if self._show_thinking else ""
        return {"type": "thinking", "thinking": text, "signature": _signature(part)}

    def _ended(self, delta: OutputDelta) -> dict[str, str | None]:
        if delta.finish_reason == "length":
            return _ending("max_tokens")
        if self.called:
            return _ending("tool_use")
        if isinstance(delta.stop_reason, str):
            return _ending("stop_sequence", delta.stop_reason)
        return _ending("end_turn")

    def _tokens(self) -> dict[str, Any]:
        # Anthropic does not count what the cache held as input.
        used = self._generation
        cached = used.cached_tokens
        return {
            "input_tokens": used.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"thinking_tokens": used.reasoning_tokens},
        }


def _ending(reason: str | None, text: str | None = None) -> dict[str, str | None]:
    """What a message says of its end. stop_details are those of a refusal, which is not ours to tell."""
    return {"stop_reason": reason, "stop_sequence": text, "stop_details": None}


def _signature(part: Part) -> str:
    """What clients send back with the text. It proves nothing, and is only there because they ask for one."""
    return sha256(part.text.encode()).hexdigest()


def _chat_of(served: ServedModel, body: MessagesRequest) -> Chat:
    """Raises RequestError."""
    check_texts("stop", body.stop_sequences, "stop_sequences")
    chat = _as_chat(body)
    chat.stop, chat.temperature, chat.top_p, chat.top_k = body.stop_sequences, body.temperature, body.top_p, body.top_k
    return Chat(served, chat, body.max_tokens)


def _as_chat(body: CountRequest) -> ChatRequest:
    """The same conversation as chat completions have it. Raises RequestError."""
    try:
        conversation = _conversation(body)
    except RecursionError:
        raise RequestError("messages are nested too deeply", "messages") from None
    last = conversation[-1] if conversation else None
    chat = ChatRequest(messages=conversation)
    chat.continue_final_message = bool(last and last.role == "assistant" and last.content and not last.tool_calls)
    chat.tools = [
        _function(checked(tool, Tool, at=f"tools[{index}]"))
        for index, tool in enumerate(body.tools or [])
        if tool.get("type") in _OWN_TOOLS
    ]
    chat.tool_choice = _tool_choice(body.tool_choice)
    chat.parallel_tool_calls = not (body.tool_choice and body.tool_choice.disable_parallel_tool_use)
    config = body.output_config or OutputConfig()
    chat.reasoning_effort = config.effort
    if wanted := config.format or body.output_format:
        chat.response_format = msgspec.structs.replace(wanted, strict=True).response_format()
    if body.thinking:
        if body.thinking.type not in _THINKING:
            raise RequestError(
                f"thinking.type must be one of {', '.join(_THINKING)}, got {body.thinking.type!r}", "thinking.type"
            )
        chat.chat_template_kwargs = {"enable_thinking": body.thinking.type != "disabled"}
    return chat


def _conversation(body: CountRequest) -> list[Message]:
    conversation: list[Message] = []
    if body.system:
        conversation.append(Message("system", spoken(body.system, "system")))
    for index, turn in enumerate(body.messages):
        path = f"messages[{index}]"
        if turn.role not in ("user", "assistant", "system"):
            raise RequestError(f"{path}.role must be user or assistant, got {turn.role!r}", f"{path}.role")
        conversation += messages_of(turn, path)
    return conversation


def _warn(body: CountRequest) -> None:
    """Name the tools that only Anthropic runs or describes, and the blocks that say nothing: clients send them to every
    server."""
    warn_of(LEFT_OUT, [str(kind) for tool in body.tools or [] if (kind := tool.get("type")) not in _OWN_TOOLS])
    warn_of(ITEMS_LEFT_OUT, left_out(body.messages))


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    function = {name: value for name, value in function.items() if value is not None}
    examples = {"examples": tool.input_examples} if tool.input_examples else {}
    return {"type": "function", "function": function | {"parameters": (tool.input_schema or {}) | examples}}


def _tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in names:
        raise RequestError(f"tool_choice.type must be auto, any, tool or none, got {choice.type!r}", "tool_choice.type")
    return names[choice.type]
