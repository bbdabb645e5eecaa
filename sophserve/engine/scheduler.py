"""What to compute next: decodes first, then prefill chunks, then new requests, within one budget of tokens.

Rules that hold after every call:
- a step's tokens never exceed max_num_batched_tokens, its sequences never max_num_seqs; a prompt token whose logprobs
  are wanted counts as prompt_logprobs_cost tokens, so that such a step takes no longer than a plain one;
- a running request owns the blocks of all its tokens that are computed or planned;
- behind the next token of a request the worker may compute as many guessed ones as the plan says; whether they come
  true is known with the result, so until then the request owns the blocks of all that may;
- when blocks run out the request that comes last in order (of arrival, or of priority and arrival) is preempted: it
  gives up its blocks and computes its tokens again once it can hold them all;
- requests in the background get what the others leave of a step, and are preempted for one of those that waits;
- where the layers are split over stages, all of them compute at the same time, each another plan: the requests that
  decode are split into as many groups, which plans have in turn, and nothing is guessed unless one request runs alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from sophserve.engine.block_pool import BlockKey, BlockPool
from sophserve.engine.encoder_cache import EncoderCache
from sophserve.engine.kv_events import KvEvents
from sophserve.engine.request import Request
from sophserve.engine.request_blocks import RequestBlocks
from sophserve.link.messages import AddedRequest, EncoderInfo, ScheduledRequest, StepPlan

# Tokens of the requests that one step takes in: a hundred answers to a long prompt in the cache compute little, but
# finding and sending what each is made of takes time in which nothing else is done.
MOST_TAKEN_IN = 1 << 15


@dataclass(frozen=True)
class Limits:
    """What bounds a step: options, and of the model how many tokens one counts for whose prompt logprobs are wanted;
    encoder: what images take; drafts: how many tokens may be guessed of one request; stages: those of the model."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool = True
    chunked_prefill: bool = True
    prompt_logprobs_cost: float = 1.0
    encoder: EncoderInfo | None = None
    drafts: int = 0
    stages: int = 1


@dataclass
class SchedulerStats:
    """Counters since the start, in tokens, requests and blocks."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    evictions: int = 0


@dataclass
class _Step:
    """A plan in the making. budget: tokens that it still has room for; room: those of requests that it takes in."""

    budget: float
    room: int = MOST_TAKEN_IN
    decodes: list[ScheduledRequest] = field(default_factory=list)
    prefills: list[ScheduledRequest] = field(default_factory=list)
    added: list[AddedRequest] = field(default_factory=list)


class Scheduler:
    """Holds the requests by id: `running` ones own blocks, `waiting` ones own none."""

    def __init__(self, limits: Limits, num_blocks: int, events: KvEvents | None = None) -> None:
        self.limits = limits
        self.stats = SchedulerStats()
        self.events = events
        self.pool = BlockPool(num_blocks, self._on_eviction)
        self.images = EncoderCache(limits.encoder)
        self._blocks = RequestBlocks(self.pool, limits.block_size, limits.prefix_caching, events)
        self.running: dict[int, Request] = {}
        self.waiting: dict[int, Request] = {}
        self._queue: list[
            tuple[bool, int, int]
        ] = []  # a heap of the waiting requests' order; may name some that are gone
        # The plans: how many tokens of each running request, and how many guessed ones behind them.
        self._under_way: deque[dict[int, tuple[int, int]]] = deque()
        self._dropped: list[int] = []
        self._step = 0

    def add(self, request: Request) -> None:
        """Queue a request behind those that come before it in order."""
        self.waiting[request.id] = request
        heappush(self._queue, request.order)

    def finish(self, request: Request) -> None:
        """Forget a request that has ended or was cancelled. Plans already sent may still compute a token of it."""
        self.waiting.pop(request.id, None)
        if request.id in self.running:
            self._release(request)

    def schedule(self, only: Request | None = None) -> StepPlan | None:
        """The next step, or None while there is nothing to compute. only: all others stay as they are."""
        self._blocks.begin_step()
        step = _Step(self.limits.max_num_batched_tokens)
        for background in (False, True):
            self._fill(step, background, only)
        for background in (False, True):
            if not step.decodes and not step.prefills and not self.images.has_work:
                self._decode(step, self._in_order(background, only), early=True)
        if not step.decodes and not step.prefills and not self.images.has_work:
            return None
        scheduled = step.decodes + sorted(step.prefills, key=lambda entry: entry.count > 1)
        self._under_way.append({entry.id: (entry.count, entry.drafts) for entry in scheduled})
        dropped, self._dropped = self._dropped, []
        self._step += 1
        return StepPlan(self._step, dropped, step.added, scheduled, *self.images.end_plan())

    def update(self, sampled: Mapping[int, list[int]]) -> None:
        """The oldest plan under way is done and gave these tokens by request, as in SampledTokens."""
        counts = self._under_way.popleft()
        self.images.plan_done()
        for identity, tokens in sampled.items():
            if request := self.running.get(identity) or self.waiting.get(identity):  # or it has ended
                request.output += tokens
                request.pending -= 1
                if identity in counts:
                    request.computed += len(tokens) - 1
                    self._blocks.remember(request)
        for identity, (count, drafts) in counts.items():
            request = self.running[identity]
            request.scheduled -= count
            request.guessed -= drafts
            request.computed += count

    def restart(self) -> list[Request]:
        """All KV blocks and every plan under way are lost: queue what ran again. Returns that."""
        lost = list(self.running.values())
        for request in lost:
            self._requeue(request)
        for request in self.waiting.values():
            request.pending = 0
        self._under_way.clear()
        self._dropped.clear()
        self.images.reset()
        self.lose_blocks()
        return lost

    def lose_blocks(self) -> None:
        """Nobody has a block any more, and none holds anything."""
        self.pool.reset()
        self._forgotten()

    def forget_prefixes(self) -> None:
        """Forget what the KV blocks of finished requests hold."""
        self.pool.forget_all()
        self._forgotten()

    def _on_eviction(self, block: int, key: BlockKey) -> None:
        self.stats.evictions += 1
        if self.events:
            self.events.removed(key)

    def _forgotten(self) -> None:
        if self.events:
            self.events.cleared()

    def _fill(self, step: _Step, background: bool, only: Request | None) -> None:
        """Put into a plan what there is room for of the requests in the background, or of the others."""
        running = self._in_order(background, only)
        self._decode(step, running)
        for request in running:
            if request.to_compute < 1 or request.is_decoding or step.budget < 1 or request.id not in self.running:
                continue
            if count := self._chunk(request, step):
                step.prefills.append(self._plan(request, count, []))
        while step.budget >= 1 and step.room > 0 and (candidate := self._next_waiting(only)):
            if candidate.background != background or not self._admit(candidate, step.budget, not only):
                break
            step.room -= candidate.known
            count = self._chunk(candidate, step)
            step.added.append(candidate.for_worker())
            step.prefills.append(self._plan(candidate, count, candidate.blocks.copy()))

    def _in_order(self, background: bool, only: Request | None) -> list[Request]:
        """The running requests that are in the background, or the others. A victim of preemption, which runs no more,
        comes after all that are scheduled before."""
        running = [only] if only else sorted(self.running.values(), key=lambda request: request.order)
        return [request for request in running if request.background == background]

    def _decode(self, step: _Step, running: list[Request], *, early: bool = False) -> None:
        """Plan a token of each of these that decode; of several stages' those of one group. early: also of such whose
        last token some stage has still to compute."""
        for request in self._group(running, early=early) if self.limits.stages > 1 else running:
            if request.is_decoding and step.budget >= 1 and not request.exhausted and request.id in self.running:
                blocks = self._blocks_for_next_token(request)
                if blocks is not None:
                    drafts = self._drafts(request)
                    blocks += self._blocks.grow(request, drafts) or []
                    step.decodes.append(self._plan(request, 1, blocks, drafts))
                    step.budget -= 1

    def _group(self, running: list[Request], *, early: bool) -> list[Request]:
        """Those of the requests that are next to decode, in the same order: one in as many as there are stages, which
        compute the latest plans while the tokens of the one before these are chosen."""
        stages = self.limits.stages
        decoding = [request for request in running if request.is_decoding and not request.exhausted]
        oldest, known = min((request.latest for request in decoding), default=0), self._step + 1 - stages
        if oldest > known and not early:
            return []
        last = max(oldest, known)
        due = sorted((each for each in decoding if each.latest <= last), key=lambda request: request.latest)
        # Those that are due are shared out over what is left of a turn, so that every stage has something to compute.
        others = {request.latest for request in decoding if request.latest > last}
        most = min(-(-len(decoding) // stages), -(-len(due) // (stages - len(others))))
        chosen = {request.id for request in due[:most]}
        return [request for request in decoding if request.id in chosen]

    def _next_waiting(self, only: Request | None) -> Request | None:
        """The request to admit next, left in the queue."""
        if only:
            return self.waiting.get(only.id)
        while self._queue:
            request = self.waiting.get(self._queue[0][-1])
            if request:
                return request
            heappop(self._queue)
        return None

    def _chunk(self, request: Request, step: _Step) -> int:
        """How many tokens of a prompt to compute; none while an image is being encoded. Takes both from the budget."""
        cost = 1.0 if request.params.prompt_logprobs is None else self.limits.prompt_logprobs_cost
        step.budget = self.images.encode(request, step.budget)
        most = int(max(0 if self.images.has_work else 1, step.budget / cost))
        if not self.limits.chunked_prefill:
            most = request.to_compute
        count = min(request.to_compute, most, self.images.reachable(request))
        step.budget -= count * cost
        return count

    def _drafts(self, request: Request) -> int:
        """How many tokens may be guessed behind a request's next one: there is room for those that come true."""
        if self.limits.stages > 1 and len(self.running) > 1:  # all stages wait for the one that guesses
            return 0
        wanted, most = request.params.speculative_tokens, self.limits.drafts
        most = most if wanted is None else min(most, wanted)
        room = request.max_tokens - len(request.output) - request.pending - request.guessed - 1
        drafts = max(0, min(most, room))
        return drafts if self._blocks.has_spare(request, drafts, len(self.running)) else 0

    def _plan(self, request: Request, count: int, new_blocks: list[int], drafts: int = 0) -> ScheduledRequest:
        request.scheduled += count
        request.guessed += drafts
        request.latest = self._step + 1
        if request.to_compute == 0:
            request.pending += 1
        self._blocks.remember(request)
        return ScheduledRequest(request.id, count, new_blocks, drafts)

    def _blocks_for_next_token(self, request: Request) -> list[int] | None:
        """The new ones; None if it was preempted itself, as the last one."""
        while (blocks := self._blocks.grow(request)) is None:
            victim = max(self.running.values(), key=lambda running: running.order)
            self._requeue(victim)
            self.stats.preemptions += 1
            if victim is request:
                break
        return blocks

    def _requeue(self, request: Request) -> None:
        self._release(request)
        self.add(request)

    def _release(self, request: Request) -> None:
        """Take a request from the running ones, with all that it has there."""
        del self.running[request.id]
        self._blocks.release(request)
        self.images.release(request)
        request.computed = request.scheduled = request.guessed = 0
        for counts in self._under_way:
            counts.pop(request.id, None)
        self._dropped.append(request.id)

    def _make_way(self, request: Request) -> None:
        """Preempt requests in the background, which the plan does not have yet, for one that waits and is none."""
        victims = sorted((each for each in self.running.values() if each.background), key=lambda each: each.order)
        while victims and not (
            len(self.running) < self.limits.max_num_seqs and self._blocks.has_room(request, len(self.running))
        ):
            self._requeue(victims.pop())
            self.stats.preemptions += 1

    def _admit(self, request: Request, budget: float, may_preempt: bool) -> bool:
        """Move a waiting request to the running ones, with blocks for all its tokens, if it can be now."""
        if request.pending:  # preempted while its next token was under way, it waits for that token
            return False
        if may_preempt and not request.background:
            self._make_way(request)
        if len(self.running) >= self.limits.max_num_seqs:
            return False
        most = inf if self.limits.chunked_prefill else budget
        if not self._blocks.take(request, len(self.running), most):
            return False
        if not request.admitted:  # what it computed before it was preempted is no hit
            request.admitted = True
            self.stats.prefix_queries += request.length
            self.stats.prefix_hits += request.computed
            request.cached_tokens = request.computed
        del self.waiting[request.id]
        self.running[request.id] = request
        return True
