"""Which blocks of the pool a request has, and which of them it finds filled."""

from __future__ import annotations

from sophserve.engine.block_pool import BlockPool
from sophserve.engine.kv_events import KvEvents
from sophserve.engine.request import Request


class RequestBlocks:
    """Gives requests blocks of a pool, and takes them back. events: who hears of those that can be found."""

    def __init__(self, pool: BlockPool, block_size: int, prefix_caching: bool, events: KvEvents | None = None) -> None:
        self._pool = pool
        self._block_size = block_size
        self._prefix_caching = prefix_caching
        self._events = events
        self._filling: set[int] = set()  # remembered blocks that the plan in the making fills

    def begin_step(self) -> None:
        """Another plan is in the making."""
        self._filling.clear()

    def take(self, request: Request, running: int, most: float) -> bool:
        """Give a request blocks for all its tokens, cached ones among them, if that can be now beside so many running
        ones and leaves no more than `most` tokens to compute."""
        size = self._block_size
        hits = self._cached(request)
        if self._filling.intersection(hits):  # one step later they can be shared instead of computed twice
            return False
        if not self._fits(request, running, hits):
            return False
        if request.length - len(hits) * size > most:
            return False
        self._pool.share(hits)
        request.blocks = hits + self._pool.allocate(-(-request.length // size) - len(hits))
        request.remembered = len(hits)
        request.computed = len(hits) * size
        return True

    def has_room(self, request: Request, running: int) -> bool:
        """Whether there are enough blocks for a request beside so many running ones."""
        return self._fits(request, running, self._cached(request))

    def grow(self, request: Request, drafts: int = 0) -> list[int] | None:
        """Make room for one more token, behind those that are guessed, and for drafts of it; returns the new blocks,
        None if there are not enough."""
        missing = self._missing(request, drafts)
        if missing > self._pool.available:
            return None
        blocks = self._pool.allocate(missing)
        request.blocks += blocks
        return blocks

    def has_spare(self, request: Request, drafts: int, running: int) -> bool:
        """Whether drafts of one more token leave a block for each of so many running requests."""
        missing = self._missing(request, drafts)
        return not missing or missing + running <= self._pool.available

    def _missing(self, request: Request, drafts: int) -> int:
        """Blocks that a request lacks for one more token, all guessed ones and so many drafts."""
        tokens = request.planned + request.guessed + 1 + drafts
        return max(0, -(-tokens // self._block_size) - len(request.blocks))

    def release(self, request: Request) -> None:
        self._pool.release(request.blocks)
        request.blocks.clear()
        request.remembered = 0

    def remember(self, request: Request) -> None:
        """Offer the blocks that hold known tokens to later requests. Plans run in order, so a block may be offered as
        soon as the plan that fills it is on its way."""
        if not self._prefix_caching:
            return
        full = min(request.planned, request.known) // self._block_size
        if full > request.remembered:
            keys = request.keys(self._block_size)
            new = range(request.remembered, full)
            first = [index for index in new if self._pool.remember(request.blocks[index], keys[index])]
            if self._events and first:
                self._events.stored(request, first, self._block_size)
            self._filling.update(request.blocks[request.remembered : full])
            request.remembered = full

    def _fits(self, request: Request, running: int, hits: list[int]) -> bool:
        # One more block for each running request, so that admitting this one does not preempt it at once. The last
        # token needs no room.
        further = 0 if request.pooling or len(request.output) + 1 >= request.max_tokens else 1
        wanted = -(-(request.length + further) // self._block_size) - len(hits) + self._pool.cached_among(hits)
        return wanted + running <= self._pool.available or (not running and wanted <= self._pool.available)

    def _cached(self, request: Request) -> list[int]:
        if not self._prefix_caching or request.of_every_token:
            return []
        # At least the last token is computed, or there would be nothing to sample from.
        usable = (request.length - 1) // self._block_size
        return self._pool.find(request.keys(self._block_size)[:usable])
