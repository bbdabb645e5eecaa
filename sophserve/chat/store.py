"""The conversations that are kept: a file for each, in the format of /save, and one for each picture, whose name stands
in place of its data URL."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from sophserve.chat.conversation import Conversation, FormatError, new_id, read, write
from sophserve.chat.pictures import Picture
from sophserve.errors import SophserveError

T = TypeVar("T")
_PICTURE = re.compile("[0-9a-f]{64}")
_DAYS = 30  # for which a deleted conversation can be brought back


class StoreError(SophserveError):
    """What is kept cannot be read or changed."""


class Store:
    """A folder of conversations. Several chats may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deleted = folder / "deleted"
        self._pictures = folder / "pictures"

    def all(self) -> list[Conversation]:
        """Every conversation, the last one first, without what is in its pictures: see complete(). Files that hold none
        are passed over. Raises StoreError."""
        files = self._try(lambda: sorted(self._folder.glob("*.json")))
        found = [conversation for file in files for conversation in self._read(file)]
        return sorted(found, key=lambda conversation: conversation.updated, reverse=True)

    def complete(self, conversation: Conversation) -> Conversation:
        """A conversation of all() with its pictures; those that are no longer there are left out."""
        for message in conversation.messages:
            message.images = [Picture(each.name, url) for each in message.images if (url := self._load(each.url))]
        return conversation

    def keep(self, conversation: Conversation) -> None:
        """Write a conversation, with what another chat has added to it. Raises StoreError."""
        file = self._file(conversation)
        known = {message.id for message in conversation.messages}
        for kept in self._read(file) if file.exists() else []:
            added = [message for message in kept.messages if message.id not in known]
            conversation.messages += self.complete(replace(kept, messages=added)).messages

        def put() -> None:
            messages = [replace(message, images=self._put(message.images)) for message in conversation.messages]
            self._write(file, write([replace(conversation, messages=messages)]).encode())

        self._try(put)

    def add(self, conversations: list[Conversation]) -> None:
        """Keep conversations beside the others; one whose id is taken gets another. Raises StoreError."""
        for conversation in conversations:
            if self._file(conversation).exists():
                conversation.id = new_id()
            self.keep(conversation)

    def delete(self, conversation: Conversation) -> None:
        """Put a conversation away; restore() brings it back, for some weeks. Raises StoreError."""

        def move() -> None:
            self._deleted.mkdir(mode=0o700, exist_ok=True)
            for old in self._deleted.glob("*.json"):
                if old.stat().st_mtime < time.time() - _DAYS * 86400:
                    old.unlink()
            self._sweep()
            file = self._deleted / f"{conversation.id}.json"
            self._file(conversation).replace(file)
            os.utime(file)

        self._try(move)

    def restore(self) -> Conversation:
        """Bring back what was deleted last. Raises StoreError."""
        files = self._try(lambda: sorted(self._deleted.glob("*.json"), key=lambda file: file.stat().st_mtime))
        if not files or not (found := self._read(files[-1])):
            raise StoreError("nothing was deleted")
        self._try(lambda: files[-1].replace(self._file(found[0])))
        return found[0]

    def _file(self, conversation: Conversation) -> Path:
        return self._folder / f"{conversation.id}.json"

    def _read(self, file: Path) -> list[Conversation]:
        try:
            return read(file.read_bytes(), lambda url: _PICTURE.fullmatch(url) is not None)
        except (OSError, FormatError):
            return []

    def _write(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:  # mode 0600
            new.write(content)
        Path(new.name).replace(file)

    def _put(self, images: list[Picture]) -> list[Picture]:
        """Keep pictures, each once, and name their files in place of their contents."""
        found = []
        for each in images:
            name = hashlib.sha256(each.url.encode()).hexdigest()
            if (file := self._pictures / name).exists():
                os.utime(file)
            else:
                self._write(file, each.url.encode())
            found.append(Picture(each.name, name))
        return found

    def _load(self, name: str) -> str:
        try:
            return (self._pictures / name).read_text()
        except OSError:
            return ""

    def _sweep(self) -> None:
        """Remove the pictures of no conversation. New ones stay: theirs may not be written yet."""
        files = [*self._folder.glob("*.json"), *self._deleted.glob("*.json")]
        used = {each.url for file in files for kept in self._read(file) for m in kept.messages for each in m.images}
        for file in self._pictures.glob("*"):
            if file.name not in used and file.stat().st_mtime < time.time() - 86400:
                file.unlink()

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise StoreError(f"cannot use {self._folder}: {error.strerror}") from None
