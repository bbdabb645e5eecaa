"""A conversation: a tree of messages, of which the path to one leaf goes on. Retries and edits add branches to it.
As JSON it has the format of the playground's files."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from sophserve.chat.pictures import Picture, is_data_url
from sophserve.errors import SophserveError

_TITLE_LENGTH = 60
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class FormatError(SophserveError):
    """A text is no file of conversations."""


def new_id() -> str:
    """An identifier that nobody else has; it can name a file."""
    return secrets.token_hex(12)


def _now() -> datetime:
    return datetime.now(UTC)


class Message(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One message below its parent, which comes before it in the list; the first ones have none (null)."""

    id: str = ""
    parent: str | msgspec.UnsetType | None = msgspec.UNSET
    role: Literal["user", "assistant", "system"]
    content: str
    images: list[Picture] = []
    reasoning: str = ""
    model: str = ""
    finish: str | None = None
    stopped: bool = False
    error: str = ""
    stats: dict[str, float] = {}

    def short(self, most: int) -> str:
        """The names of its pictures and its text, in a line of so many characters."""
        line = " ".join([*(f"[{picture.name}]" for picture in self.images), *self.content.split()])
        return line if len(line) <= most else line[: most - 1].rstrip() + "…"


class Conversation(msgspec.Struct, kw_only=True):
    """What was said. leaf: the last message of the path that is shown, None before the first."""

    id: str = msgspec.field(default_factory=new_id)
    title: str = ""
    created: datetime = msgspec.field(default_factory=_now)
    updated: datetime = msgspec.field(default_factory=_now)
    system: str = ""
    parameters: dict[str, Any] = {}
    leaf: str | None = None
    messages: list[Message] = []

    def path(self) -> list[Message]:
        """The messages that are shown, from the first to the leaf."""
        known = {message.id: message for message in self.messages}
        found, at = [], self.leaf
        while at:
            found.append(known[at])
            at = known[at].parent or None
        return found[::-1]

    def ends(self) -> list[Message]:
        """The last message of every branch."""
        parents = {message.parent for message in self.messages}
        return [message for message in self.messages if message.id not in parents]

    def add(self, role: Literal["user", "assistant"], content: str, images: Sequence[Picture] = ()) -> Message:
        message = Message(id=new_id(), parent=self.leaf, role=role, content=content, images=list(images))
        self.messages.append(message)
        self.leaf, self.updated = message.id, _now()
        return message

    def name(self) -> str:
        """The title: as the reader says, or as the conversation begins."""
        first = self.title.strip()
        if self.messages and not first:
            begin = self.messages[0]
            first = begin.content.strip() or (begin.images[0].name if begin.images else "")
        first = first.partition("\n")[0] or "…"
        return first if len(first) <= _TITLE_LENGTH else first[: _TITLE_LENGTH - 1].rstrip() + "…"

    def holds(self, words: Sequence[str]) -> bool:
        """Whether the title or the texts hold every word."""
        texts = [self.name().lower(), *(message.content.lower() for message in self.messages)]
        return all(any(word.lower() in text for text in texts) for word in words)


class _File(msgspec.Struct, kw_only=True):
    format: Literal["sophserve.conversations"]
    version: Literal[1]
    conversations: list[Conversation]


def write(conversations: list[Conversation]) -> str:
    """The text of a file that holds these conversations."""
    file = _File(format="sophserve.conversations", version=1, conversations=conversations)
    return msgspec.json.format(msgspec.json.encode(file), indent=1).decode() + "\n"


def read(text: str | bytes, is_picture: Callable[[str], bool] = is_data_url) -> list[Conversation]:
    """The conversations in such a text, or in one with a single list of messages. is_picture: whether an image can have
    a URL. Raises FormatError."""
    try:
        data = msgspec.json.decode(text)
        if isinstance(data, dict) and "messages" in data:
            found = [msgspec.convert(data, Conversation)]
        else:
            found = msgspec.convert(data, _File).conversations
    except msgspec.DecodeError as error:  # a text that is no JSON, or a value of another type than it should be
        raise FormatError(str(error)) from None
    except UnicodeDecodeError:
        raise FormatError("it is no text") from None
    for conversation in found:
        _complete(conversation, is_picture)
    return [conversation for conversation in found if conversation.messages]


def _complete(conversation: Conversation, is_picture: Callable[[str], bool]) -> None:
    """Check how the messages hang together, and add what may be left out. Raises FormatError."""
    if not _ID.fullmatch(conversation.id):
        conversation.id = new_id()
    if conversation.messages and conversation.messages[0].role == "system":
        conversation.system = conversation.system or conversation.messages[0].content
        del conversation.messages[0]
    known: list[str] = []
    for index, message in enumerate(conversation.messages):
        where = f"messages[{index}]"
        if message.role == "system":
            raise FormatError(f"{where} is a system message, and not the first one")
        message.id = message.id or new_id()
        if message.id in known:
            raise FormatError(f"{where} has the id of another message")
        if message.parent is msgspec.UNSET:
            message.parent = known[-1] if known else None
        if message.parent is not None and message.parent not in known:
            raise FormatError(f"the parent of {where} is no message before it")
        if not all(is_picture(image.url) for image in message.images):
            raise FormatError(f"the url of an image of {where} is not data:image/...;base64,...")
        known.append(message.id)
    if conversation.leaf is None and known:
        conversation.leaf = known[-1]
    if conversation.leaf is not None and conversation.leaf not in known:
        raise FormatError("leaf is the id of no message")
