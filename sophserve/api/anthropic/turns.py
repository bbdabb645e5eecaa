"""The turns of a conversation of /v1/messages as messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sophserve.api.generation.content import ContentPart, ImagePart, content_part
from sophserve.api.generation.request_bodies import Message, required
from sophserve.errors import RequestError

_CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")
# What only Anthropic can read, or what is no part of the conversation.
_SAY_NOTHING = frozenset(
    {
        "container_upload",
        "fallback",
        "mcp_tool_listing",
        "redacted_thinking",
        "tool_addition",
        "tool_reference",
        "tool_removal",
    }
)


class Source(msgspec.Struct):
    """Of an image: type base64 with its data, or url. Of a document: type text with its data, or content with blocks.
    Others are files."""

    type: str
    data: str | None = None
    content: str | list[Block] | None = None
    media_type: str | None = None
    url: str | None = None


class Block(msgspec.Struct):
    """A part of a turn: text, an image, a document or a result of a search, thinking, a call of a tool, or what it
    gave. `is_error` and `signature` are of no use to a chat template. input: as it is written. content: of a result
    of Anthropic's own tools an object, or several."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    server_name: str | None = None
    input: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    tool_use_id: str | None = None
    title: str | None = None
    context: str | None = None
    source: str | Source | None = None
    content: str | list[dict[str, Any]] | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.input = self.input.copy()  # apart from the body, which is let go


class Turn(msgspec.Struct):
    """What one side said."""

    role: str
    content: str | list[Block]


def messages_of(turn: Turn, path: str) -> Iterator[Message]:
    """A turn in order. What the user's tools gave are messages before what the user says to it; what Anthropic's tools
    gave divides what the assistant says. Raises RequestError for blocks whose meaning would be lost."""
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    parts: list[ContentPart] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []

    def said() -> Message:
        whole = Message(turn.role, parts.copy() or None, tool_calls=calls.copy() or None)
        whole.reasoning_content = "".join(thoughts) if thoughts else None
        for begun in (parts, calls, thoughts):
            begun.clear()
        return whole

    for index, block in enumerate(turn.content):
        where = f"{path}.content[{index}]"
        if block.type == "tool_result" or block.type.endswith("_tool_result"):
            if turn.role == "assistant" and (parts or calls):
                yield said()
            yield Message("tool", _result(block, where), tool_call_id=required(block, "tool_use_id", where))
        elif block.type in _CALLS:
            function = {"name": required(block, "name", where), "arguments": _arguments(block.input)}
            calls.append({"id": required(block, "id", where), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type not in _SAY_NOTHING:
            parts += _parts(block, where)
    if parts or calls or not turn.content:
        yield said()


def spoken(content: str | list[Block], path: str) -> str | list[ContentPart]:
    """A content of text, images, documents and results of searches. Raises RequestError for other blocks."""
    if isinstance(content, str):
        return content
    said = ((f"{path}[{index}]", block) for index, block in enumerate(content) if block.type not in _SAY_NOTHING)
    return [part for where, block in said for part in _parts(block, where)]


def left_out(turns: list[Turn]) -> list[str]:
    """The types of the blocks that are not in the conversation."""
    blocks = (block for turn in turns if isinstance(turn.content, list) for block in turn.content)
    return sorted({block.type for block in blocks if block.type in _SAY_NOTHING})


def _arguments(written: msgspec.Raw) -> str:
    """As OpenAI's clients send them: their text."""
    text = bytes(written).decode()
    return "{}" if text in ("", "null") else text


def _parts(block: Block, path: str) -> list[ContentPart]:
    """What is said in a block, and the images in it."""
    match block:
        case Block(type="compaction", content=str(text)):
            return [ContentPart("text", text)]
        case Block(type="document", source=Source(type="text", data=str(text))):
            return _titled(block, [], text)
        case Block(type="document", source=Source(type="content", content=str() | list() as content)):
            return _titled(block, [], spoken(content, f"{path}.source.content"))
        case Block(type="search_result", source=str(source)):
            return _titled(block, [source], spoken(_blocks(block.content or "", path), f"{path}.content"))
    if block.type == "document":
        raise RequestError(f"{path}: documents are read from a source of type text or content; send the text", path)
    return [content_part(block, path, called="blocks")]


def _titled(block: Block, head: list[str], content: str | list[ContentPart]) -> list[ContentPart]:
    """One text of all, but for images between."""
    texts: list[str | None] = [block.title, block.context, *head]
    parts: list[ContentPart] = []
    for part in [ContentPart("text", content)] if isinstance(content, str) else content:
        if isinstance(part, ImagePart):
            parts += [*_joined(texts), part]
            texts = []
        else:
            texts.append(part.text)
    return parts + (_joined(texts) if texts or not parts else [])


def _joined(texts: list[str | None]) -> list[ContentPart]:
    return [ContentPart("text", "\n".join(filter(None, texts)))]


def _result(block: Block, path: str) -> str | list[ContentPart]:
    """What a tool gave: text, or of Anthropic's own tools what else one can read of it, as JSON."""
    content = block.content
    if content is None or isinstance(content, str):
        return content or ""
    if block.type in ("tool_result", "mcp_tool_result") and isinstance(content, list):
        return spoken(_blocks(content, path), f"{path}.content")
    return msgspec.json.encode(_readable(content)).decode()


def _readable(value: Any) -> Any:
    match value:
        case dict():
            return {name: _readable(entry) for name, entry in value.items() if not name.startswith("encrypted_")}
        case list():
            return list(map(_readable, value))
    return value


def _blocks(content: Any, path: str) -> str | list[Block]:
    try:
        return msgspec.convert(content, str | list[Block])
    except msgspec.ValidationError as error:
        raise RequestError(f"{path}.content: {error}", f"{path}.content") from None
