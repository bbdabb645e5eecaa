"""What an answer is made of - reasoning, content, tool calls - as events while it comes, and folded into a whole."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """What it tells the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """It calls a tool; calls count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A piece of that call's arguments. All pieces of a call, joined, are a JSON object."""

    index: int
    text: str


Event = ReasoningDelta | ContentDelta | CallStart | ArgumentsDelta


class Parser(Protocol):
    """Takes a text in parts. However it is cut into parts, the folded events are the same."""

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""

    def finish(self) -> list[Event]:
        """The rest. No feed may follow."""


@dataclass
class Call:
    """One whole tool call; arguments is a JSON object as text."""

    name: str
    arguments: str = ""


@dataclass
class ParsedAnswer:
    """The fold of all events of an answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        """Append what came."""
        for event in events:
            match event:
                case ReasoningDelta(text):
                    self.reasoning += text
                case ContentDelta(text):
                    self.content += text
                case CallStart(_, name):
                    self.calls.append(Call(name))
                case ArgumentsDelta(index, text):
                    self.calls[index].arguments += text


class AnswerParser:
    """Reasoning first, where there is a parser for it; what follows goes to the tool parser, if any."""

    def __init__(self, reasoning: Parser | None, tools: Parser | None, parallel: bool = True) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._parallel = parallel

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""
        events: list[Event] = [ContentDelta(text)] if text else []
        if self._reasoning:
            events = self._reasoning.feed(text)
        return list(self._through_tools(events))

    def finish(self) -> list[Event]:
        """The rest. No feed may follow."""
        events = list(self._through_tools(self._reasoning.finish() if self._reasoning else []))
        return events + list(self._kept(self._tools.finish() if self._tools else []))

    def _through_tools(self, events: Iterable[Event]) -> Generator[Event, None, None]:
        for event in events:
            if self._tools and isinstance(event, ContentDelta):
                yield from self._kept(self._tools.feed(event.text))
            else:
                yield event

    def _kept(self, events: Iterable[Event]) -> Generator[Event, None, None]:
        for event in events:
            if self._parallel or not isinstance(event, CallStart | ArgumentsDelta) or event.index == 0:
                yield event
