"""Which images the workers hold encoded, and what of them to encode in a step.

The workers do as they are told: what they hold is known here, and is the same on all ranks. An image is pinned while a
request needs its embeddings; of those that are not, the longest unused goes when there is no room.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sophserve.engine.request import Item, Request
from sophserve.link.images import EncodeImage, SharedPixels
from sophserve.link.messages import EncoderInfo


@dataclass(eq=False)
class _Entry:
    """An image. done: the pieces of its encoding that are planned. pins: how many requests need it."""

    item: Item
    done: int = 0
    pins: int = 0


class EncoderCache:
    """queries, hits: images that requests needed, and those of them that were encoded already. info: None for a model
    that sees nothing, whose requests have no items."""

    def __init__(self, info: EncoderInfo | None) -> None:
        self.queries = 0
        self.hits = 0
        self._info = info or EncoderInfo(0, 0.0, 0)
        self._under_way: deque[list[SharedPixels]] = deque()  # by plan, what the workers may still have to read
        self.reset()

    def reset(self) -> None:
        """The workers are new."""
        self._entries: dict[bytes, _Entry] = {}  # in the order of their last use
        self._pinned: dict[Request, list[tuple[Item, _Entry]]] = {}
        self._tokens = 0
        self._under_way.clear()
        self._begin_plan()

    @property
    def has_work(self) -> bool:
        """Whether the plan in the making encodes anything."""
        return bool(self._encoded)

    def encode(self, request: Request, budget: float) -> float:
        """Plan pieces of the images that come next in a request, within a budget of tokens; returns what is left of it.
        One piece of the first image of a plan is done whatever it costs, so that every image gets on."""
        for item in request.items_ahead():
            if item.start >= request.planned + budget or (entry := self._pin(request, item)) is None:
                break
            missing = self._info.pieces - entry.done
            if not missing:
                continue
            cost = self._info.cost * item.length / self._info.pieces
            pieces = min(missing, int(budget / cost) if cost else missing) or int(not self._encoded)
            if pieces:
                entry.done += pieces
                budget -= pieces * cost
                self._encoded.append(EncodeImage(item.digest, pieces, item.shape, item.pixels.path))
                self._reading.append(item.pixels)
            if pieces < missing:
                break
        return budget

    def reachable(self, request: Request) -> int:
        """How many of its next tokens a request can compute with the images that are pinned and encoded by then."""
        pinned = {item.start: entry for item, entry in self._pinned.get(request, ())}
        for item in request.items_ahead():
            entry = pinned.get(item.start)
            if entry is None or entry.done < self._info.pieces:
                return max(0, item.start - request.planned)
        return request.to_compute

    def release(self, request: Request) -> None:
        """The request is done, or has to wait."""
        for _, entry in self._pinned.pop(request, ()):
            entry.pins -= 1

    def end_plan(self) -> tuple[list[EncodeImage], list[bytes]]:
        """What the plan that is sent now has the workers encode, and what to forget before that."""
        for request in list(self._pinned):
            pinned = self._pinned[request]
            self._pinned[request] = [(item, entry) for item, entry in pinned if item.end > request.planned]
            for item, entry in pinned:
                entry.pins -= item.end <= request.planned
            if not self._pinned[request]:
                del self._pinned[request]
        planned = self._encoded, self._forgotten
        self._under_way.append(self._reading)
        self._begin_plan()
        return planned

    def plan_done(self) -> None:
        """The workers have run the oldest plan under way."""
        self._under_way.popleft()

    def _begin_plan(self) -> None:
        self._encoded: list[EncodeImage] = []
        self._forgotten: list[bytes] = []
        self._reading: list[SharedPixels] = []

    def _pin(self, request: Request, item: Item) -> _Entry | None:
        """The entry of an image, kept for a request; None while there is no room."""
        pinned = self._pinned.get(request, [])
        known = next((entry for other, entry in pinned if other is item), None)
        if known is not None:
            return known
        entry = self._entries.pop(item.digest, None)
        if entry is None:
            if not self._make_room(item.length):
                return None
            entry = _Entry(item)
            self._tokens += item.length
        self._entries[item.digest] = entry
        self.queries += 1
        self.hits += entry.done == self._info.pieces
        entry.pins += 1
        self._pinned[request] = [*pinned, (item, entry)]
        return entry

    def _make_room(self, tokens: int) -> bool:
        unused = [entry for entry in self._entries.values() if not entry.pins]
        excess = self._tokens + tokens - self._info.cache_tokens
        if excess > sum(entry.item.length for entry in unused):
            return False
        for entry in unused:
            if excess <= 0:
                break
            del self._entries[entry.item.digest]
            self._tokens -= entry.item.length
            excess -= entry.item.length
            if entry.done:
                self._forgotten.append(entry.item.digest)
        return True
