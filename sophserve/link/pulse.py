"""A sign of life in shared memory: the worker counts up, the server sees whether the count moves."""

from __future__ import annotations

import mmap
import os


class Pulse:
    """A counter with one writer. `descriptor` goes to the other process; `Pulse(descriptor)` opens it there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._count = 0

    @classmethod
    def create(cls) -> Pulse:
        """A new counter at 0."""
        descriptor = os.memfd_create("sophserve-pulse")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def beat(self) -> None:
        self._count += 1
        self._memory[:8] = self._count.to_bytes(8, "little")

    @property
    def count(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    def close(self) -> None:
        """Release the memory and the descriptor of this process."""
        self._memory.close()
        os.close(self.descriptor)
