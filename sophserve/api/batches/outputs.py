"""The answers to lines: appended to two files as they come, each line's once, whatever ends the process."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from sophserve.api.batches.answer_types import BatchUsage
from sophserve.errors import ConfigError


class _Cached(msgspec.Struct):
    cached_tokens: int = 0


class _Reasoning(msgspec.Struct):
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    """As any of the endpoints has it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    input_tokens_details: _Cached | None = None
    output_tokens_details: _Reasoning | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body


class _Answered(msgspec.Struct):
    """What has to be known of a line of an output."""

    id: str
    custom_id: str | None
    response: _Response | None


class Place(NamedTuple):
    """Whose answer it is. id: of the answer, which ends in the number of the line."""

    id: str
    number: int
    custom_id: str | None


class Outputs:
    """The two files of a batch. A last line that is torn, as a killed process leaves one, is dropped. For threads.

    done: the lines that have their answer, with a hash of the custom_id. Raises ConfigError for files that hold
    something else, or that another process writes.
    """

    def __init__(self, good: Path, bad: Path) -> None:
        self.done: dict[int, int] = {}
        self.completed = self.failed = 0
        self.usage = BatchUsage()
        self._lock = threading.Lock()
        self._decode = msgspec.json.Decoder(_Answered).decode
        self._files: dict[bool, int] = {}
        try:
            for path, answered in ((good, True), (bad, False)):
                self._files[answered] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._recover(path, answered)
        except BaseException:
            self.close()
            raise

    def add(self, place: Place, answered: bool, rest: bytes) -> None:
        """Append an answer, if the line has none yet. rest: of the JSON object, behind custom_id, up to its closing
        brace. Raises OSError, and leaves no half of a line then."""
        names = msgspec.json.encode({"id": place.id, "custom_id": place.custom_id})
        line = names[:-1] + b"," + rest + b"}\n"
        with self._lock:
            if place.number in self.done:
                return
            self._append(self._files[answered], line)
            self._count(self._decode(line), place.number, answered)

    def flush(self) -> None:
        """Have the system write what it holds. Raises OSError."""
        with self._lock:
            for descriptor in self._files.values():
                os.fsync(descriptor)

    def close(self) -> None:
        """Let the files go."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _append(self, descriptor: int, line: bytes) -> None:
        end = os.fstat(descriptor).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise

    def _recover(self, path: Path, answered: bool) -> None:
        descriptor = self._files[answered]
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process writes {path}; wait for it, or choose another file") from None
        end = 0
        with open(os.dup(descriptor), "rb") as file:  # noqa: PTH123 - of a descriptor
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    os.ftruncate(descriptor, end)
                    break
                end += len(line)
                found = self._read(line)
                if found is None:
                    raise ConfigError(f"{path} holds something other than answers of a batch; choose another file")
                self._count(found[0], found[1], answered)

    def _read(self, line: bytes) -> tuple[_Answered, int] | None:
        try:
            found = self._decode(line)
            return found, int(found.id.rpartition("_")[2])
        except ValueError:  # msgspec's errors are such as well
            return None

    def _count(self, found: _Answered, number: int, answered: bool) -> None:
        self.done[number] = hash(found.custom_id)
        self.completed += answered
        self.failed += not answered
        for usage in _usages(found):
            total = self.usage
            inputs = usage.prompt_tokens + usage.input_tokens
            outputs = usage.completion_tokens + usage.output_tokens
            total.input_tokens += inputs
            total.output_tokens += outputs
            total.total_tokens += inputs + outputs
            for details in filter(None, (usage.prompt_tokens_details, usage.input_tokens_details)):
                total.input_tokens_details.cached_tokens += details.cached_tokens
            if usage.output_tokens_details:
                total.output_tokens_details.reasoning_tokens += usage.output_tokens_details.reasoning_tokens


def _usages(found: _Answered) -> Iterator[_Usage]:
    if found.response and found.response.body.usage:
        yield found.response.body.usage
