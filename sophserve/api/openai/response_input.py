"""The body of /v1/responses, and its items as messages of a chat."""

from __future__ import annotations

from typing import Any

import msgspec

from sophserve.api.generation.request_bodies import ContentPart, Message, OutputFormat, required, text_parts
from sophserve.api.http.body import checked
from sophserve.errors import RequestError

_TEXTS = ("input_text", "output_text", "text")


class Item(msgspec.Struct):
    """One entry of input: a message, or by its type a function_call, function_call_output or reasoning."""

    type: str = "message"
    id: str | None = None
    status: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class TextOptions(msgspec.Struct):
    """format: the form that the text must have. verbosity has no effect."""

    format: OutputFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """effort: how much the model is to think, for templates that know of it."""

    effort: str | None = None
    summary: str | None = None


class _Named(msgspec.Struct):
    id: str


class InputRequest(msgspec.Struct, kw_only=True):
    """The fields that the prompt is made of. prompt names what OpenAI's servers keep."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    conversation: str | _Named | None = None

    @property
    def conversation_id(self) -> str | None:
        """Whose items come before the input."""
        return self.conversation.id if isinstance(self.conversation, _Named) else self.conversation


class _AllowedTools(msgspec.Struct):
    tools: list[dict[str, Any]]
    mode: str = "auto"


class _WithAllowedTools(msgspec.Struct):
    tool_choice: _AllowedTools


class ResponsesRequest(InputRequest, kw_only=True):
    """The whole body: OpenAI's, and further fields of chat completions."""

    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: float | None = None
    text: TextOptions | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    timeout: float | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the logprobs of the answer's tokens are to be shown."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or [])


def conversation_of(given: str | list[Item]) -> list[Message]:
    """Input as messages. Raises RequestError."""
    if isinstance(given, str):
        return [Message("user", given)]
    messages: list[Message] = []
    for index, item in enumerate(given):
        path = f"input[{index}]"
        match item.type:
            case "message":
                role = "system" if item.role == "developer" else item.role
                if role is None or item.content is None:
                    missing = "role" if role is None else "content"
                    raise RequestError(f"{path}.{missing}: is missing", f"{path}.{missing}")
                _add_text(messages, role, text_parts(item.content, f"{path}.content", _TEXTS))
            case "function_call":
                _add_call(messages, item, path)
            case "function_call_output":
                output = text_parts(item.output or "", f"{path}.output", _TEXTS)
                messages.append(Message("tool", output, tool_call_id=required(item, "call_id", path)))
            case "reasoning":
                _add_reasoning(messages, item)
            case _:
                raise RequestError(f"{path}: items of type {item.type!r} are not supported", path)
    return messages


def function_tools(body: InputRequest) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    """tools and tool_choice as chat completions have them. Tools that only OpenAI's servers can run are left out:
    clients send them to every server."""
    tools = [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        for tool in body.tools or []
        if tool.get("type") == "function"
    ]
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        given = checked({"tool_choice": choice}, _WithAllowedTools).tool_choice
        names = [tool.get("name") for tool in given.tools if tool.get("type") == "function"]
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": given.mode, "tools": allowed}}
    return tools, choice


def _add_text(messages: list[Message], role: str, content: str | list[ContentPart]) -> None:
    """What an assistant says belongs to what it has thought."""
    last = messages[-1] if messages else None
    if last and role == last.role == "assistant" and last.content is None and not last.tool_calls:
        last.content = content
    else:
        messages.append(Message(role, content))


def _add_reasoning(messages: list[Message], item: Item) -> None:
    """The reasoning, or else its summary; what only its maker could read is left out."""
    content = item.content if isinstance(item.content, list) else []
    texts = [part.text for part in content or item.summary or [] if part.text]
    if texts:
        messages.append(Message("assistant", reasoning_content="\n\n".join(texts)))


def _add_call(messages: list[Message], item: Item, path: str) -> None:
    """Calls that were made together, and the text before them, are one message."""
    function = {"name": required(item, "name", path), "arguments": item.arguments or "{}"}
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant"))
    call = {"id": required(item, "call_id", path), "type": "function", "function": function}
    messages[-1].tool_calls = messages[-1].tool_calls or []
    messages[-1].tool_calls.append(call)
