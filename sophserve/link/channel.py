"""One direction of talk between two processes: a ring of bytes in shared memory with one writer and one reader.

The memory is anonymous (memfd) and reached by inherited file descriptors, so nothing is left behind however the
processes end. Two eventfds carry the only counters: the writer adds to `filled` the bytes that it has put into the
ring, the reader adds to `freed` those that it has taken out. The kernel orders the memory behind them on every
processor.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import select
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack

CAPACITY = 1 << 20
_PREFIX = 8  # bytes of a message's length


class Ring:
    """The shared part. `descriptors` go to the other process; `Ring.attach` opens them there."""

    def __init__(self, memory: int, filled: int, freed: int, capacity: int) -> None:
        self.descriptors = (memory, filled, freed)
        self.filled = filled
        self.freed = freed
        self.capacity = capacity
        self.data = mmap.mmap(memory, capacity)

    @classmethod
    def create(cls, capacity: int = CAPACITY) -> Ring:
        """A new ring of `capacity` bytes. Messages may be longer than that."""
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        with ExitStack() as undo:

            def kept(descriptor: int) -> int:
                undo.callback(os.close, descriptor)
                return descriptor

            memory = kept(os.memfd_create("sophserve-ring"))
            os.ftruncate(memory, capacity)
            ring = cls(memory, kept(os.eventfd(0, flags)), kept(os.eventfd(0, flags)), capacity)
            undo.pop_all()
        return ring

    @classmethod
    def attach(cls, descriptors: tuple[int, int, int]) -> Ring:
        """The ring behind inherited descriptors."""
        return cls(*descriptors, os.fstat(descriptors[0]).st_size)

    def close(self) -> None:
        """Release the memory and the descriptors of this process."""
        self.data.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


def _take(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


class Writer:
    """The writing end. A message that does not fit is put in piece by piece as the reader makes room."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._position = 0
        self._free = ring.capacity
        self._pending: deque[memoryview] = deque()

    def send(self, message: bytes) -> None:
        """Write, sleeping while the ring is full."""
        self._queue(message)
        freed = select.poll()  # select takes no descriptors above 1023
        freed.register(self._ring.freed, select.POLLIN)
        while not self._flush():
            freed.poll()

    def send_soon(self, message: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Write what fits now and the rest from the event loop, in order."""
        waiting = bool(self._pending)
        self._queue(message)
        if not waiting and not self._flush():
            loop.add_reader(self._ring.freed, self._continue, loop)

    def _continue(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._flush():
            loop.remove_reader(self._ring.freed)

    def _queue(self, message: bytes) -> None:
        self._pending.append(memoryview(len(message).to_bytes(_PREFIX, "little") + message))

    def _flush(self) -> bool:
        ring = self._ring
        while self._pending:
            if self._free == 0:
                self._free = _take(ring.freed)
                if self._free == 0:
                    return False
            piece = self._pending.popleft()
            count = min(len(piece), self._free, ring.capacity - self._position)
            ring.data[self._position : self._position + count] = piece[:count]
            self._position = (self._position + count) % ring.capacity
            self._free -= count
            if count < len(piece):
                self._pending.appendleft(piece[count:])
            os.eventfd_write(ring.filled, count)
        return True


class Reader:
    """The reading end."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._position = 0
        self._buffer = bytearray()

    @property
    def descriptor(self) -> int:
        """Readable when there is something to receive; for poll and the event loop."""
        return self._ring.filled

    def receive(self) -> Iterator[bytes]:
        """The messages that are complete by now. Does not wait."""
        ring = self._ring
        count = _take(ring.filled)
        if count:
            first = min(count, ring.capacity - self._position)
            self._buffer += ring.data[self._position : self._position + first]
            self._buffer += ring.data[: count - first]
            self._position = (self._position + count) % ring.capacity
            os.eventfd_write(ring.freed, count)
        while len(self._buffer) >= _PREFIX:
            end = _PREFIX + int.from_bytes(self._buffer[:_PREFIX], "little")
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[_PREFIX:end])
            del self._buffer[:end]
            yield message
