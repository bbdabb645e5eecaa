"""Memory that clients hold without giving the server a way to be done with them, bounded for all of them together."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from contextlib import suppress
from typing import Protocol

# glibc's numbers of its parameters, and bytes from which on a piece of memory is one of the system's own.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_OWN_MAPPING = 128 * 1024


def give_freed_memory_back() -> None:
    """Have what large bodies and answers took go back to the system when they are freed. By itself glibc raises the
    size from which on it does that up to 32 MiB as soon as such a piece is freed, and then keeps several times what is
    in use. Other C libraries have no such function."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)
        mallopt(_ARENA_MAX, 2)


class Holder(Protocol):
    """What holds memory for a client: progress is when it last moved, on the loop's clock."""

    progress: float

    @property
    def client(self) -> str:
        """Whose it is."""

    def give_way(self) -> None:
        """End, for the memory is needed for others."""


class Budget:
    """So many bytes for all. Whoever holds most gives way when they are used up: of that client's holders the one
    that has not moved for longest. A client that is alone may use everything, and cannot keep others out."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[Holder, int] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """Say how much a holder has now; 0 is to let go."""
        self.total += size - self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
        while self.total > self.limit:
            found = self._largest()
            self.hold(found, 0)
            found.give_way()

    def _largest(self) -> Holder:
        clients: dict[str, int] = defaultdict(int)
        for holder, size in self._held.items():
            clients[holder.client] += size
        client = max(clients, key=lambda name: clients[name])
        return min((holder for holder in self._held if holder.client == client), key=lambda holder: holder.progress)
