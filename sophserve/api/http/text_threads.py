"""Threads for what takes longer the more a client sends: reading bodies, rendering templates, tokenizing."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from sophserve.api.http.request_record import current_record

T = TypeVar("T")

# Bytes or characters. Less is done in less time than a thread takes to be heard when others compute.
INLINE = 10_000
# More does not hold up less.
SHORT = 1 << 16
# Characters that stand for a second of waiting when it is decided who is next.
_RATE = 1_000_000


class TextThreads:
    """One thread for short work, and one for long. Each takes first what has waited longest for its length; what an API
    key has sent waits for what it sent before. Work whose request is gone is not begun."""

    def __init__(self) -> None:
        self._short, self._long = _Lane("short texts"), _Lane("long texts", _give_back_memory)
        self._pending: Counter[object] = Counter()

    async def run(self, work: Callable[[], T], size: int | None = None) -> T:
        """What work returns: done at once for a request with a small body, in a thread for others. size: of the texts
        that it goes through; None is the whole body's."""
        record = current_record.get()
        size = record.body_bytes if size is None else size
        if max(size, record.body_bytes) <= INLINE:
            return work()
        lane, owner = self._short if size <= SHORT else self._long, record.account
        rank = time.monotonic() * _RATE + size
        if owner:
            rank += self._pending[owner]
            self._pending[owner] += size
        try:
            # Within the context of the request, whose record takes warnings.
            return await asyncio.wrap_future(lane.submit(rank, partial(copy_context().run, work)))
        finally:
            if owner:
                self._pending[owner] -= size
                if not self._pending[owner]:
                    del self._pending[owner]

    def close(self) -> None:
        """Begin nothing more."""
        for lane in (self._short, self._long):
            lane.thread.shutdown(wait=False, cancel_futures=True)


TEXT_THREADS = web.AppKey("text_threads", TextThreads)


class _Lane:
    def __init__(self, name: str, afterwards: Callable[[], None] = lambda: None) -> None:
        self.thread = ThreadPoolExecutor(1, name)
        self._afterwards = afterwards
        self._jobs: list[tuple[float, int, Future[Any], Callable[[], Any]]] = []
        self._numbers = itertools.count()

    def submit(self, rank: float, work: Callable[[], T]) -> Future[T]:
        """Have work done; the lowest rank comes first."""
        future: Future[T] = Future()
        heapq.heappush(self._jobs, (rank, next(self._numbers), future, work))
        self.thread.submit(self._do_first)
        return future

    def _do_first(self) -> None:
        future, work = heapq.heappop(self._jobs)[2:]
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            self._afterwards()


def _give_back_memory() -> None:
    """What a tokenizer took for a long text glibc would keep."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
