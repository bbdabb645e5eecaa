"""What ends requests from outside: each that runs has a deadline, which may be set to now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# On the event loop's clock: a deadline that no request has of itself.
NOW = 0.0


class Deadlines:
    """Those of all requests that run."""

    def __init__(self) -> None:
        self._all: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def hold(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """A request runs within this context, and within the deadline's."""
        self._all.add(deadline)
        self._idle.clear()
        try:
            yield
        finally:
            self._all.discard(deadline)
            if not self._all:
                self._idle.set()

    def end_all(self) -> None:
        """Have each request's deadline pass at once."""
        for deadline in self._all:
            if not deadline.expired():
                deadline.reschedule(NOW)

    async def drain(self, seconds: float) -> None:
        """Wait for what runs, and after that time end it."""
        for limit in (seconds, 1.0):  # the second one is for the error to reach its client
            try:
                async with asyncio.timeout(limit):
                    await self._idle.wait()
                return
            except TimeoutError:
                self.end_all()
