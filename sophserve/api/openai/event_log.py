"""Streams that can be followed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from sophserve.api.generation.answer_pump import Event


class EventLog:
    """The events of one stream, each as it is sent, which any number of clients may follow."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self._events: list[bytes] = []
        self._ended = False
        self._news = asyncio.Event()

    def add(self, events: Iterable[Event]) -> None:
        """Take what comes next."""
        for pieces in events:
            self._events.append(b"".join(pieces))
            self.size += len(self._events[-1])
        self._tell()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._tell()

    async def follow(self, start: int) -> AsyncIterator[bytes]:
        """All events from that number on, until the last one."""
        while True:
            news = self._news
            for number in range(start, len(self._events)):
                yield self._events[number]
            start = max(start, len(self._events))
            if news is self._news:
                if self._ended:
                    return
                await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
