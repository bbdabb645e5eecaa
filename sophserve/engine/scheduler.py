"""What to compute next: decodes first, then prefill chunks, then new requests, within one budget of tokens.

Rules that hold after every call:
- a step's tokens never exceed max_num_batched_tokens, its sequences never max_num_seqs;
- a running request owns the blocks of all its tokens that are computed or scheduled;
- when blocks run out the request that arrived last is preempted: it gives up its blocks and computes its tokens again
  once it can hold them all.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from sophserve.engine.block_pool import BlockPool
from sophserve.engine.request import Request
from sophserve.worker.messages import AddedRequest, ScheduledRequest, StepPlan


@dataclass(frozen=True)
class Limits:
    """The options that bound a step."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool = True
    chunked_prefill: bool = True


@dataclass
class SchedulerStats:
    """Counters since the start, in tokens and requests."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


class Scheduler:
    """Holds the requests by id in order of arrival: `running` ones own blocks, `waiting` ones own none."""

    def __init__(self, limits: Limits, num_blocks: int) -> None:
        self.limits = limits
        self.pool = BlockPool(num_blocks)
        self.running: OrderedDict[int, Request] = OrderedDict()
        self.waiting: OrderedDict[int, Request] = OrderedDict()
        self.stats = SchedulerStats()
        self._dropped: list[int] = []
        self._filling: set[int] = set()  # remembered blocks that the plan in the making fills
        self._step = 0

    def add(self, request: Request) -> None:
        """Queue a request behind those that wait."""
        self.waiting[request.id] = request

    def finish(self, request: Request) -> None:
        """Forget a request that has ended or was cancelled. Plans already sent may still compute a token of it."""
        self.waiting.pop(request.id, None)
        if self.running.pop(request.id, None):
            self._release(request)

    def schedule(self) -> StepPlan | None:
        """The next step, or None while there is nothing to compute."""
        budget = self.limits.max_num_batched_tokens
        self._filling.clear()
        decodes: list[ScheduledRequest] = []
        prefills: list[ScheduledRequest] = []
        added: list[AddedRequest] = []
        # In order of arrival, so that a victim of preemption always comes after those already scheduled.
        for identity in sorted(self.running):
            request = self.running.get(identity)
            if request and request.to_compute == 1 and not request.exhausted:
                blocks = self._blocks_for_next_token(request)
                if blocks is not None:
                    decodes.append(self._advance(request, 1, blocks))
        budget -= len(decodes)
        for request in self.running.values():
            if request.to_compute > 1 and budget > 0:
                count = min(request.to_compute, budget)
                prefills.append(self._advance(request, count, []))
                budget -= count
        while budget > 0 and (request := self._admit(budget)):
            count = min(request.to_compute, budget)
            added.append(self._added(request))
            prefills.append(self._advance(request, count, request.blocks.copy()))
            budget -= count
        return self._plan(decodes, prefills, added)

    def update(self, request: Request, token_id: int) -> None:
        """A plan that was sent gave this token for this request."""
        request.output.append(token_id)
        request.pending = 0
        if request.id in self.running:
            self._remember(request)

    def _plan(
        self, decodes: list[ScheduledRequest], prefills: list[ScheduledRequest], added: list[AddedRequest]
    ) -> StepPlan | None:
        if not decodes and not prefills:
            return None
        scheduled = decodes + sorted(prefills, key=lambda entry: entry.count > 1)
        dropped, self._dropped = self._dropped, []
        self._step += 1
        return StepPlan(self._step, dropped, added, scheduled)

    def _advance(self, request: Request, count: int, new_blocks: list[int]) -> ScheduledRequest:
        request.computed += count
        if request.computed == request.length:
            request.pending = 1
        before = request.remembered
        self._remember(request)
        self._filling.update(request.blocks[before : request.remembered])
        return ScheduledRequest(request.id, count, new_blocks)

    def _blocks_for_next_token(self, request: Request) -> list[int] | None:
        if request.computed < len(request.blocks) * self.limits.block_size:
            return []
        while self.pool.available == 0:
            victim = self.running[max(self.running)]
            self._preempt(victim)
            if victim is request:
                return None
        blocks = self.pool.allocate(1)
        request.blocks += blocks
        return blocks

    def _preempt(self, request: Request) -> None:
        del self.running[request.id]
        self._release(request)
        self.stats.preemptions += 1
        self.waiting[request.id] = request
        self.waiting.move_to_end(request.id, last=False)

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks.clear()
        request.computed = 0
        request.remembered = 0
        self._dropped.append(request.id)

    def _admit(self, budget: int) -> Request | None:
        if not self.waiting or len(self.running) >= self.limits.max_num_seqs:
            return None
        request = next(iter(self.waiting.values()))
        if request.pending:  # preempted while its next token was under way: wait for that token
            return None
        size = self.limits.block_size
        hits = self._cached_blocks(request)
        if self._filling.intersection(hits):  # one step later they can be shared instead of computed twice
            return None
        # One more block for each running request, so that admitting this one does not preempt it at once.
        wanted = -(-(request.length + 1) // size) - len(hits) + self.pool.cached_among(hits)
        if wanted + len(self.running) > self.pool.available and (self.running or wanted > self.pool.available):
            return None
        if not self.limits.chunked_prefill and request.length - len(hits) * size > budget:
            return None
        self.pool.share(hits)
        request.blocks = hits + self.pool.allocate(-(-request.length // size) - len(hits))
        request.remembered = len(hits)
        request.computed = len(hits) * size
        self.stats.prefix_queries += request.length
        self.stats.prefix_hits += request.computed
        if not request.output:
            request.cached_tokens = request.computed
        del self.waiting[request.id]
        self.running[request.id] = request
        return request

    def _cached_blocks(self, request: Request) -> list[int]:
        if not self.limits.prefix_caching or request.params.prompt_logprobs is not None:
            return []
        # At least the last token is computed, or there would be nothing to sample from.
        usable = (request.length - 1) // self.limits.block_size
        return self.pool.find(request.keys(self.limits.block_size)[:usable])

    def _remember(self, request: Request) -> None:
        """Offer the blocks that hold known tokens to later requests. Plans run in order, so a block may be offered as
        soon as the plan that fills it is on its way."""
        if not self.limits.prefix_caching:
            return
        full = min(request.computed, request.known) // self.limits.block_size
        if full > request.remembered:
            keys = request.keys(self.limits.block_size)
            for index in range(request.remembered, full):
                self.pool.remember(request.blocks[index], keys[index])
            request.remembered = full

    @staticmethod
    def _added(request: Request) -> AddedRequest:
        return AddedRequest(
            request.id,
            request.encoded(),
            len(request.prompt),
            request.computed,
            request.seed,
            request.params,
            request.end_token_ids,
        )
