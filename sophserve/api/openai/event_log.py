"""Streams that can be followed again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

from sophserve.api.generation.answer_pump import Event
from sophserve.api.http.json_pieces import joined


class EventLog:
    """The events of one stream, each as it is sent, which any number of clients may follow."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self._events: list[bytes] = []
        self._ended = False
        self._news = asyncio.Event()

    async def add(self, events: Iterable[Event]) -> None:
        """Take what comes next, a piece at a time: all of it even if this is cancelled, as an event's place is its
        number."""
        taking = self._taking(events)
        try:
            for _ in taking:
                await asyncio.sleep(0)
        finally:
            deque(taking, maxlen=0)
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

    def _taking(self, events: Iterable[Event]) -> Iterator[None]:
        """Between two steps others may have their turn."""
        for event in events:
            pieces = []
            for piece in joined(event):
                pieces.append(piece)
                yield
            self._events.append(b"".join(pieces))
            self.size += len(self._events[-1])

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
