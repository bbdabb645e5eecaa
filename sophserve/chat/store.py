"""The conversations that are kept: a file for each, in the format of /save."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sophserve.chat.conversation import Conversation, FormatError, new_id, read, write
from sophserve.errors import SophserveError

T = TypeVar("T")
_DAYS = 30  # for which a deleted conversation can be brought back


class StoreError(SophserveError):
    """What is kept cannot be read or changed."""


class Store:
    """A folder of conversations. Several chats may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deleted = folder / "deleted"

    def all(self) -> list[Conversation]:
        """Every conversation, the last one first. Files that hold none are passed over. Raises StoreError."""
        files = self._try(lambda: sorted(self._folder.glob("*.json")))
        found = [conversation for file in files for conversation in self._read(file)]
        return sorted(found, key=lambda conversation: conversation.updated, reverse=True)

    def keep(self, conversation: Conversation) -> None:
        """Write a conversation, with what another chat has added to it. Raises StoreError."""
        file = self._file(conversation)
        known = {message.id for message in conversation.messages}
        for kept in self._read(file) if file.exists() else []:
            conversation.messages += [message for message in kept.messages if message.id not in known]
        self._try(lambda: self._write(file, write([conversation])))

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
            return read(file.read_bytes())
        except (OSError, FormatError):
            return []

    def _write(self, file: Path, text: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, delete=False) as new:  # mode 0600
            new.write(text)
        Path(new.name).replace(file)

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise StoreError(f"cannot use {self._folder}: {error.strerror}") from None
