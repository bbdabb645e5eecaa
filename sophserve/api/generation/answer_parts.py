"""An answer as a row of parts - reasoning, text, tool calls - which /v1/responses and /v1/messages word in turn."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from sophserve.api.generation.answer_pump import Event, Writer
from sophserve.api.generation.chat import Chat, parsed
from sophserve.api.http.json_pieces import pieces
from sophserve.engine.output import OutputDelta
from sophserve.text.answer_events import ArgumentsDelta, CallBroken, CallStart, ContentDelta, ReasoningDelta
from sophserve.text.answer_events import Event as Parsed

# An event of these APIs, whose name is its type.
Named = dict[str, Any]


@dataclass
class Part:
    """What stands in one piece. text: of a call its arguments. call_id: what the tool's result will name. broken: of a
    call that the model broke off, what stands for it where the call has not been shown."""

    kind: Literal["reasoning", "text", "call"]
    text: str = ""
    name: str = ""
    call_id: str = ""
    broken: str | None = None
    id: str = field(default_factory=lambda: uuid4().hex)


class PartWriter(Writer):
    """Words the parts of one answer as they come. call_prefix: what the ids of calls begin with, where that is free."""

    def __init__(self, chat: Chat, call_prefix: str) -> None:
        self.parts: list[Part] = []
        self._chat = chat
        self._parser = chat.parser()
        self._call_prefix = call_prefix

    @abstractmethod
    def named_events(self, delta: OutputDelta) -> Iterator[Named]:
        """The events that a delta makes."""

    def add(self, index: int, delta: OutputDelta) -> None:
        deque(self.named_events(delta), maxlen=0)

    def events(self, index: int, delta: OutputDelta) -> Iterator[Event]:
        """The events that a delta makes, to be sent."""
        return map(encoded, self.named_events(delta))

    @property
    def called(self) -> bool:
        """Whether there are tool calls, and all of them complete."""
        calls = [part for part in self.parts if part.kind == "call"]
        return bool(calls) and all(call.broken is None for call in calls)

    @abstractmethod
    def _begin(self, part: Part) -> Iterator[Named]:
        """The events of a part that begins, empty."""

    @abstractmethod
    def _gain(self, part: Part, text: str) -> Iterator[Named]:
        """The events of more text, which is in the part already."""

    @abstractmethod
    def _end(self, part: Part) -> Iterator[Named]:
        """The events of a part that is complete."""

    def _parsed(self, delta: OutputDelta) -> list[Parsed]:
        """What a delta adds."""
        return parsed(self._parser, delta.text, delta.finish_reason)

    def _take(self, event: Parsed) -> Iterator[Named]:
        """The events of what was added."""
        match event:
            case CallStart(_, name):
                yield from self._next(Part("call", name=name, call_id=self._chat.call_id(self._call_prefix)))
            case ReasoningDelta(text) | ContentDelta(text):
                kind: Any = "reasoning" if isinstance(event, ReasoningDelta) else "text"
                if not self.parts or self.parts[-1].kind != kind:
                    yield from self._next(Part(kind))
                yield from self._add(text)
            case ArgumentsDelta(_, text):
                yield from self._add(text)
            case CallBroken(_, text):
                self.parts[-1].broken = text

    def _next(self, part: Part) -> Iterator[Named]:
        yield from self._end_last()
        self.parts.append(part)
        yield from self._begin(part)

    def _add(self, text: str) -> Iterator[Named]:
        self.parts[-1].text += text
        yield from self._gain(self.parts[-1], text)

    def _end_last(self) -> Iterator[Named]:
        if self.parts:
            yield from self._end(self.parts[-1])


def encoded(event: Named) -> Event:
    """An event as it is sent."""
    yield b"event: %b\ndata: " % event["type"].encode()
    yield from pieces(event)
    yield b"\n\n"
