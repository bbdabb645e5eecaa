"""What an answer is made of - reasoning, content, tool calls - as events while it comes, and folded into a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """A piece of that call's arguments. All pieces of a complete call, joined, are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallBroken:
    """That call, the last one, will never be complete: it is none. text: what stands for it where it has not been
    shown, as the model wrote it; empty behind complete calls."""

    index: int
    text: str


Event = ReasoningDelta | ContentDelta | CallStart | ArgumentsDelta | CallBroken
OfCall = CallStart | ArgumentsDelta | CallBroken


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
                case ArgumentsDelta(_, text):
                    self.calls[-1].arguments += text
                case CallBroken(_, text):
                    self.calls.pop()
                    self.content += text


class ThoughtParser(Parser, Protocol):
    """A parser of reasoning. closed: whether it has come to its end."""

    closed: bool


class AnswerParser:
    """Reasoning first, where there is a parser for it; what follows goes to a parser of calls, which tools makes."""

    def __init__(
        self, reasoning: ThoughtParser | None, tools: Callable[[], Parser] | None, parallel: bool = True
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools() if tools else None
        self._thought = UnclosedThought(tools()) if reasoning and tools else None
        self._parallel = parallel

    def feed(self, text: str) -> list[Event]:
        """What more text makes certain."""
        events: list[Event] = [ContentDelta(text)] if text else []
        return self._through(self._reasoning.feed(text) if self._reasoning else events)

    def finish(self, cut: bool = False) -> list[Event]:
        """The rest. No feed may follow. cut: the model would have gone on."""
        events = self._through(self._reasoning.finish() if self._reasoning else [])
        more = self._thought.finish(cut) if self._thought else []
        return events + self._kept(more + (self._tools.finish() if self._tools else []))

    def _through(self, events: Iterable[Event]) -> list[Event]:
        """Look for calls in what the parser of reasoning gave."""
        found: list[Event] = []
        for event in events:
            match event:
                case ReasoningDelta(text) if self._thought:
                    found += self._thought.feed(text)
                case ContentDelta(text) if self._tools:
                    found += [*self._closed(), *self._tools.feed(text)]
                case _:
                    found.append(event)
        if self._reasoning and self._reasoning.closed:
            found += self._closed()
        return self._kept(found)

    def _closed(self) -> list[Event]:
        thought, self._thought = self._thought, None
        return thought.rest() if thought else []

    def _kept(self, events: Iterable[Event]) -> list[Event]:
        return [event for event in events if self._parallel or not isinstance(event, OfCall) or event.index == 0]


class UnclosedThought:
    """Reasoning, which is given out until a call begins in it. If it then never ends, the call has ended it; if it
    does, the call was a mere mention."""

    def __init__(self, tools: Parser) -> None:
        self._tools = tools
        self._untold = ""
        self._events: list[Event] = []  # from the first call on

    def feed(self, text: str) -> list[Event]:
        """What more of it makes certain."""
        self._untold += text
        return self._told(self._tools.feed(text))

    def rest(self) -> list[Event]:
        """What has not been given out of a thought that has ended."""
        return [ReasoningDelta(self._untold)] if self._untold else []

    def finish(self, cut: bool) -> list[Event]:
        """The same of one that has not. cut: it would have gone on, and might have ended."""
        told, answer = self._told(self._tools.finish()), ParsedAnswer()
        answer.add(self._events)
        return told + (self._events if answer.calls and not cut else self.rest())

    def _told(self, events: list[Event]) -> list[Event]:
        told = ""
        for event in events:
            if isinstance(event, ContentDelta) and not self._events:
                told += event.text
            else:
                self._events.append(event)
        self._untold = self._untold[len(told) :]
        return [ReasoningDelta(told)] if told else []
