"""Memory that clients hold without giving the server a way to be done with them, bounded for all of them together."""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol


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

    def held(self, holder: Holder) -> int:
        """What a holder has."""
        return self._held.get(holder, 0)

    def _largest(self) -> Holder:
        clients: dict[str, int] = defaultdict(int)
        for holder, size in self._held.items():
            clients[holder.client] += size
        client = max(clients, key=lambda name: clients[name])
        return min((holder for holder in self._held if holder.client == client), key=lambda holder: holder.progress)
