"""The items of a conversation of /v1/responses as messages of a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sophserve.api.generation.content import ContentPart, content_parts
from sophserve.api.generation.request_bodies import Message, required
from sophserve.errors import RequestError

_TEXTS = ("input_text", "output_text", "text")
# What tools of OpenAI's own gave without saying it here, or what is no part of the conversation.
_SAY_NOTHING = frozenset(
    {
        "additional_tools",
        "compaction_trigger",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
_INSTEAD = {
    "compaction": "only OpenAI's servers can read it; send the conversation itself",
    "item_reference": "items are not kept here; send the item itself, or previous_response_id",
}


class Item(msgspec.Struct, kw_only=True):
    """One entry of input: a message, or by its type what a model thought, a call of a tool, or what a tool gave. The
    fields from action on hold the arguments of calls, or their results."""

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    id: str | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Any = None
    action: dict[str, Any] | None = None
    operation: dict[str, Any] | None = None
    code: str | None = None
    queries: list[str] | None = None
    outputs: list[Any] | None = None
    results: list[Any] | None = None
    result: Any = None
    error: Any = None

    def __post_init__(self) -> None:
        if self.type == "local_shell_call_output":  # which has no other name for the call
            self.call_id = self.call_id or self.id


def conversation_of(given: str | list[Item], name: str = "input") -> list[Message]:
    """Items as messages. name: of the field that they are in. Raises RequestError."""
    if isinstance(given, str):
        return [Message("user", given)]
    messages: list[Message] = []
    for index, item in enumerate(given):
        path = f"{name}[{index}]"
        if item.type == "message":
            _add_message(messages, item, path)
        elif item.type == "reasoning":
            _add_reasoning(messages, item)
        elif make := _CALLS.get(item.type):
            _add_call(messages, item, path, *make(item, path))
        elif item.type in _RESULTS:
            identity = required(item, "call_id", path)
            messages.append(Message("tool", _result(item, path), tool_call_id=identity))
        elif item.type not in _SAY_NOTHING:
            why = _INSTEAD.get(item.type, "what they say would be lost; send it as a message")
            raise RequestError(f"{path}: items of type {item.type[:64]!r} are not supported: {why}", path)
    return messages


def left_out(given: str | list[Item]) -> list[str]:
    """The types of the items that are not in the conversation."""
    items = given if isinstance(given, list) else []
    return sorted({item.type for item in items if item.type in _SAY_NOTHING})


def _add_message(messages: list[Message], item: Item, path: str) -> None:
    """What an assistant says belongs to what it has thought."""
    if item.role is None or item.content is None:
        missing = "role" if item.role is None else "content"
        raise RequestError(f"{path}.{missing}: is missing", f"{path}.{missing}")
    content = content_parts(item.content, f"{path}.content", _TEXTS)
    last = messages[-1] if messages else None
    if last and item.role == last.role == "assistant" and last.content is None and not last.tool_calls:
        last.content = content
    else:
        messages.append(Message("system" if item.role == "developer" else item.role, content))


def _add_reasoning(messages: list[Message], item: Item) -> None:
    """The reasoning, or else its summary; what only its maker could read is left out."""
    content = item.content if isinstance(item.content, list) else []
    texts = [part.text for part in content or item.summary or [] if part.text]
    if texts:
        messages.append(Message("assistant", reasoning_content="\n\n".join(texts)))


def _add_call(messages: list[Message], item: Item, path: str, name: str, arguments: Any) -> None:
    """Calls that were made together, and the text before them, are one message. What OpenAI's servers ran has its
    result with it."""
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant"))
    ran = item.type in _RUN_BY_OPENAI
    identity = item.id if ran and item.id else required(item, "call_id", path)
    told = arguments if isinstance(arguments, str) else _json(arguments)
    name = f"{item.namespace}.{name}" if item.namespace else name
    call = {"id": identity, "type": "function", "function": {"name": name, "arguments": told}}
    messages[-1].tool_calls = messages[-1].tool_calls or []
    messages[-1].tool_calls.append(call)
    if ran:
        given = (value for value in (item.output, item.outputs, item.results, item.error) if value is not None)
        result = next(given, "")
        messages.append(Message("tool", result if isinstance(result, str) else _json(result), tool_call_id=identity))


def _result(item: Item, path: str) -> str | list[ContentPart]:
    """What a tool gave: a text, parts, or something else, as JSON."""
    given = item.result if item.output is None else item.output
    if given is None:
        return ""
    if isinstance(given, list) and all(isinstance(part, dict) and "type" in part for part in given):
        try:
            parts = msgspec.convert(given, list[ContentPart])
        except msgspec.ValidationError as error:
            raise RequestError(f"{path}.output: {error}", f"{path}.output") from None
        return content_parts(parts, f"{path}.output", _TEXTS)
    return given if isinstance(given, str) else _json(given)


def _json(value: Any) -> str:
    return encoded(value).decode()


def encoded(value: Any) -> bytes:
    """The JSON of what a client sent. Raises RequestError where it is nested too deeply for that."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        raise RequestError("input is nested too deeply", "input") from None


# By the type of a call: the name of the tool, and its arguments.
_CALLS: dict[str, Callable[[Item, str], tuple[str, Any]]] = {
    "function_call": lambda item, path: (required(item, "name", path), item.arguments or "{}"),
    "custom_tool_call": lambda item, path: (required(item, "name", path), {"input": item.input or ""}),
    "local_shell_call": lambda item, path: ("local_shell", item.action or {}),
    "shell_call": lambda item, path: ("shell", item.action or {}),
    "apply_patch_call": lambda item, path: ("apply_patch", item.operation or {}),
    "program": lambda item, path: ("program", {"code": item.code or ""}),
    "mcp_call": lambda item, path: (required(item, "name", path), item.arguments or "{}"),
    "code_interpreter_call": lambda item, path: ("code_interpreter", {"code": item.code or ""}),
    "file_search_call": lambda item, path: ("file_search", {"queries": item.queries or []}),
}
_RUN_BY_OPENAI = frozenset({"mcp_call", "code_interpreter_call", "file_search_call"})
_RESULTS = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
        "program_output",
    }
)
