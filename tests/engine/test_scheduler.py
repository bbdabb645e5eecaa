"""The scheduler and the block pool alone, against a simulated worker that knows what every KV slot must hold."""

from __future__ import annotations

import random
from array import array
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophserve.engine.recovery import Recovery
from sophserve.engine.request import Item, Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.link.images import ImageShape, PlacedImage, SharedPixels
from sophserve.link.messages import EncoderInfo, StepPlan
from sophserve.sampling import SamplingParams

VOCABULARY = 5  # few tokens, so that prefixes often repeat


# How many placeholders the images of a simulation have.
IMAGES = [1, 3, 3, 8]
PIXELS = SharedPixels(1)


def next_token(tokens: list[int]) -> int:
    """What the simulated model says after these tokens."""
    return hash(tuple(tokens)) % VOCABULARY


def make_request(number: int, prompt: list[int], max_tokens: int, salt: bytes = b"") -> Request:
    return Request(number, prompt, SamplingParams(max_tokens=max_tokens), 0, max_tokens, [], root_key=salt)


class SimulatedWorker:
    """Runs plans in order. A slot of the KV cache holds the whole prefix (and salt) that its key was computed from.

    with_surprises: it guesses some of the tokens that follow, and at times knows a token only in a later step.
    """

    def __init__(self, limits: Limits, salts: dict[int, bytes], with_surprises: random.Random | None = None) -> None:
        self.limits = limits
        self.salts = salts
        self.with_surprises = with_surprises
        self.held: set[int] = set()
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.tables: dict[int, list[int]] = {}
        self.slots: dict[int, tuple] = {}
        self.images: dict[int, list[PlacedImage]] = {}
        self.encoded: dict[bytes, tuple[int, int]] = {}  # pieces that are done, and placeholders

    def run(self, plan: StepPlan) -> dict[int, list[int]]:
        limits = self.limits
        assert plan.scheduled or plan.encoded
        assert sum(entry.count for entry in plan.scheduled) <= limits.max_num_batched_tokens
        assert len(plan.scheduled) <= limits.max_num_seqs
        counts = [entry.count for entry in plan.scheduled]
        assert counts == sorted(counts, key=lambda count: count > 1), "single tokens come first"
        assert len({entry.id for entry in plan.scheduled}) == len(counts)
        for number in plan.dropped:
            for held in (self.tokens, self.computed, self.tables, self.images):
                held.pop(number, None)
            self.held.discard(number)
        for added in plan.added:
            assert added.id not in self.tokens
            self.tokens[added.id] = array("i", added.token_ids).tolist()
            self.computed[added.id] = added.computed
            self.tables[added.id] = []
            self.images[added.id] = added.images
        assert len(self.tokens) <= limits.max_num_seqs
        self._encode(plan)
        sampled = {}
        for entry in plan.scheduled:
            assert entry.drafts <= limits.drafts and (entry.count == 1 or not entry.drafts)
            self._compute(entry.id, entry.count, entry.new_blocks)
            if entry.count and self.computed[entry.id] == len(self.tokens[entry.id]):
                sampled[entry.id] = self._sample(entry.id, entry.drafts)
        return sampled

    def _encode(self, plan: StepPlan) -> None:
        for digest in plan.forgotten:
            del self.encoded[digest]
        if not plan.encoded:
            return
        info = self.limits.encoder
        assert info
        costs = [order.pieces * order.shape.tokens * info.cost / info.pieces for order in plan.encoded]
        tokens = sum(entry.count for entry in plan.scheduled)
        assert sum(costs) + tokens <= self.limits.max_num_batched_tokens or plan.encoded[0].pieces == 1
        for order in plan.encoded:
            done = self.encoded.get(order.digest, (0, 0))[0] + order.pieces
            assert order.pieces > 0 and done <= info.pieces
            self.encoded[order.digest] = done, order.shape.tokens
        assert sum(tokens for _, tokens in self.encoded.values()) <= info.cache_tokens

    def _sample(self, number: int, drafts: int) -> list[int]:
        if self.with_surprises and self.with_surprises.random() < 0.1:
            self.held.add(number)
            return []
        self.held.discard(number)
        guesses = self.with_surprises.randint(0, drafts) if self.with_surprises else 0
        assert self.computed[number] + drafts <= len(self.tables[number]) * self.limits.block_size
        given = []
        for guessed in range(1 + guesses):
            if guessed:
                self._compute(number, 1, [])
            given.append(next_token(self.tokens[number]))
            self.tokens[number].append(given[-1])
        size = self.limits.block_size
        for position in range(self.computed[number], self.computed[number] + drafts - guesses):
            self.slots[self.tables[number][position // size] * size + position % size] = ("a wrong guess",)
        return given

    def _compute(self, number: int, count: int, new_blocks: list[int]) -> None:
        size = self.limits.block_size
        tokens, table = self.tokens[number], self.tables[number]
        table += new_blocks
        if number in self.held:
            assert count == 1, "its last token is computed already"
            return
        start = self.computed[number]
        end = start + count
        images = self.images[number]
        assert (count > 0 or images) and end <= len(tokens)
        for image in images:
            if max(start, image.start) < min(end, image.start + image.shape.tokens):
                assert self.limits.encoder and self.encoded[image.digest][0] == self.limits.encoder.pieces
        if not self.limits.chunked_prefill:
            assert end == len(tokens)
        for position in range(end):
            slot = table[position // size] * size + position % size
            seen = tuple((image.digest, image.start) for image in images if image.start <= position)
            prefix = (self.salts[number], tuple(tokens[: position + 1]), seen)
            if position < start:
                assert self.slots[slot] == prefix, "the KV cache holds something else"
            else:
                self.slots[slot] = prefix
        self.computed[number] = end


class Simulation:
    """Random arrivals, cancels and results that come late."""

    def __init__(
        self,
        limits: Limits,
        num_blocks: int,
        depth: int,
        seed: int,
        priorities: int,
        surprises: bool,
        background: float,
    ) -> None:
        self.random = random.Random(seed)
        self.surprises = self.random if surprises else None
        self.limits = limits
        self.num_blocks = num_blocks
        self.depth = depth
        self.priorities = priorities
        self.background = background
        self.scheduler = Scheduler(limits, num_blocks)
        self.recovery = Recovery(self.scheduler)
        self.salts: dict[int, bytes] = {}
        self.worker = SimulatedWorker(limits, self.salts, self.surprises)
        self.requests: dict[int, Request] = {}
        self.results: deque[dict[int, list[int]]] = deque()
        self.finished: list[Request] = []
        self.steps = 0

    def arrive(self) -> None:
        longest = self.num_blocks * self.limits.block_size
        if not self.limits.chunked_prefill:
            longest = min(longest, self.limits.max_num_batched_tokens)
        length = self.random.randint(1, longest - 1)
        prompt = [self.random.randrange(2) for _ in range(length)]
        number = len(self.salts)
        self.salts[number] = self.random.choice([b"", b"", b"tenant"])
        request = make_request(number, prompt, self.random.randint(1, longest - length), self.salts[number])
        if self.limits.encoder:
            request.items = self.items(prompt)
        request.priority = self.random.randint(0, self.priorities)
        request.background = self.random.random() < self.background
        self.requests[number] = request
        self.scheduler.add(request)

    def items(self, prompt: list[int]) -> list[Item]:
        """Images here and there in a prompt, at times next to each other."""
        found: list[Item] = []
        start = self.random.randint(0, 5)
        while start < len(prompt) and len(found) < 4:
            which = self.random.randrange(len(IMAGES))
            shape = ImageShape(IMAGES[which], (1,), ())
            if start + shape.tokens <= len(prompt):
                found.append(Item(b"%d" % which * 32, start, shape, PIXELS))
                prompt[start : start + shape.tokens] = [1] * shape.tokens
            start += shape.tokens + self.random.choice([0, 0, 1, 7])
        return found

    def cancel(self) -> None:
        if self.requests:
            request = self.requests.pop(self.random.choice(list(self.requests)))
            self.scheduler.finish(request)

    def crash(self) -> None:
        self.results.clear()
        self.worker = SimulatedWorker(self.limits, self.salts, self.surprises)
        for request in self.recovery.restart():
            assert request.id in self.scheduler.waiting
        self.check()

    def turn(self) -> None:
        while len(self.results) < self.depth and (plan := self.recovery.schedule()):
            self.steps += 1
            self.results.append(self.worker.run(plan))
            self.check()
        if self.results:
            result = self.results.popleft()
            self.recovery.update(result)
            for number in result.keys() & self.requests.keys():
                request = self.requests[number]
                if len(request.output) >= request.max_tokens:
                    assert len(request.output) == request.max_tokens
                    self.scheduler.finish(request)
                    self.finished.append(self.requests.pop(number))
        self.check()

    def check(self) -> None:
        """The invariants of the scheduler and the pool."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        owned: dict[int, int] = {}
        for request in scheduler.running.values():
            assert len(request.blocks) * self.limits.block_size >= request.planned
            if not self.results:
                assert request.scheduled == request.pending == 0
                assert request.computed == self.worker.computed[request.id] - (request.id in self.worker.held)
            assert len(set(request.blocks)) == len(request.blocks)
            for block in request.blocks:
                owned[block] = owned.get(block, 0) + 1
        for request in scheduler.waiting.values():
            assert request.blocks == [] and request.planned == 0
        assert all(pool._owners[block] == owned.get(block, 0) for block in range(self.num_blocks))
        assert pool.used == len(owned)
        assert not owned.keys() & set(pool._free) and not owned.keys() & pool._cached.keys()
        assert not set(pool._free) & pool._cached.keys()
        assert len(set(pool._free)) == len(pool._free)
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of
        assert pool.idle or scheduler.running
        assert set(scheduler.running) | set(scheduler.waiting) == set(self.requests)
        assert not set(scheduler.running) & set(scheduler.waiting)

    def drain(self) -> None:
        # Every request ends after a bounded number of turns: none starves.
        bound = 50 + 10 * sum(len(r.prompt) + r.max_tokens for r in self.requests.values()) * (1 + len(self.requests))
        while self.requests:
            self.turn()
            bound -= 1
            assert bound > 0, "some request starves"


traffic = given(
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([1, 2, 4, 16]),
    num_blocks=st.integers(2, 40),
    max_num_seqs=st.integers(1, 8),
    extra_tokens=st.integers(0, 60),
    depth=st.sampled_from([1, 2, 4]),
    stages=st.sampled_from([1, 1, 2, 3]),
    prefix_caching=st.booleans(),
    chunked_prefill=st.booleans(),
    priorities=st.sampled_from([0, 2]),
    surprises=st.booleans(),
    drafts=st.sampled_from([0, 1, 3, 20]),
    background=st.sampled_from([0.0, 0.5, 1.0]),
    encoder=st.sampled_from([None, EncoderInfo(1, 0.0, 8), EncoderInfo(3, 0.5, 8), EncoderInfo(5, 20.0, 12)]),
)


def simulate(
    seed: int,
    block_size: int,
    num_blocks: int,
    max_num_seqs: int,
    extra_tokens: int,
    depth: int,
    stages: int,
    prefix_caching: bool,
    chunked_prefill: bool,
    priorities: int,
    surprises: bool,
    drafts: int,
    background: float,
    encoder: EncoderInfo | None,
) -> None:
    limits = Limits(
        max_num_seqs,
        max_num_seqs + extra_tokens + 1,
        block_size,
        prefix_caching,
        chunked_prefill,
        encoder=encoder if chunked_prefill else None,
        drafts=drafts,
        stages=stages,
    )
    simulation = Simulation(limits, num_blocks, depth, seed, priorities, surprises, background)
    for _ in range(200):
        chance = simulation.random.random()
        if chance < 0.1:
            simulation.arrive()
        elif chance < 0.12:
            simulation.cancel()
        elif chance < 0.13:
            simulation.crash()
        else:
            simulation.turn()
    simulation.drain()
    for request in simulation.finished:
        tokens = list(request.prompt)
        for _ in range(len(request.output)):
            tokens.append(next_token(tokens))
        assert request.token_ids() == tokens
    assert simulation.scheduler.pool.idle
    if not prefix_caching:
        assert simulation.scheduler.stats.prefix_hits == 0


@settings(max_examples=25, deadline=None)
@traffic
def test_random_traffic(**chosen: Any) -> None:
    simulate(**chosen)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@traffic
def test_much_random_traffic(**chosen: Any) -> None:
    simulate(**chosen)


def test_decodes_come_before_prefills_and_share_the_budget() -> None:
    scheduler = Scheduler(Limits(4, 10, 4), 100)
    first = make_request(0, [1] * 6, 5)
    scheduler.add(first)
    plan = scheduler.schedule()
    assert plan is not None and [entry.count for entry in plan.scheduled] == [6]
    scheduler.update({0: [3]})
    scheduler.add(make_request(1, [2] * 20, 5))
    plan = scheduler.schedule()
    assert plan is not None and [(entry.id, entry.count) for entry in plan.scheduled] == [(0, 1), (1, 9)]


def test_next_step_is_planned_while_the_token_is_unknown() -> None:
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    request = make_request(0, [1] * 6, 2)
    scheduler.add(request)
    assert scheduler.schedule() is not None
    plan = scheduler.schedule()
    assert plan is not None and plan.scheduled[0].count == 1
    scheduler.update({0: [1]})
    # The second and last token is under way: nothing is left to plan.
    assert scheduler.schedule() is None


def test_every_step_holds_all_decodes_while_two_are_under_way() -> None:
    scheduler = Scheduler(Limits(8, 100, 4), 1000)
    requests = {}
    under_way: deque[StepPlan] = deque()
    for step in range(60):
        if step % 3 == 0 and len(requests) < 8:
            request = make_request(len(requests), [step] * 6, 1000)
            requests[request.id] = request
            scheduler.add(request)
        plan = scheduler.schedule()
        assert plan is not None
        assert {entry.id for entry in plan.scheduled} == requests.keys()
        under_way.append(plan)
        if len(under_way) == 2:
            scheduler.update({entry.id: [1] for entry in under_way.popleft().scheduled})


@pytest.mark.parametrize(("stages", "count"), [(2, 2), (2, 3), (2, 8), (3, 7), (4, 5)])
def test_stages_compute_groups_of_their_own(stages: int, count: int) -> None:
    """As many plans as there are stages have each request once, however results come; and all go on."""
    scheduler = Scheduler(Limits(8, 100, 4, stages=stages), 1000)
    requests = [make_request(number, [number] * 6, 40) for number in range(count)]
    for request in requests:
        scheduler.add(request)
    plans: list[set[int]] = []
    results: deque[dict[int, list[int]]] = deque()
    while scheduler.running or scheduler.waiting:
        while len(results) <= stages and (plan := scheduler.schedule()):
            plans.append({entry.id for entry in plan.scheduled})
            results.append({entry.id: [1] for entry in plan.scheduled})
        scheduler.update(results.popleft())
        for request in requests:
            if request.id in scheduler.running and len(request.output) == request.max_tokens:
                scheduler.finish(request)
    assert plans[0] == set(range(count))
    # From the second turn on, until the first ones have all that they may.
    turns = [plans[first : first + stages] for first in range(1 + stages, 1 + 38 * stages, stages)]
    for turn in turns:
        assert sorted(number for group in turn for number in group) == list(range(count))
        assert max(map(len, turn)) == -(-count // stages)
    assert all(len(request.output) == 40 for request in requests)


def test_a_prompt_goes_on_while_stages_compute_the_token_before_it() -> None:
    scheduler = Scheduler(Limits(8, 10, 4, stages=2), 1000)
    scheduler.add(make_request(0, [1] * 6, 40))
    assert scheduler.schedule()
    scheduler.update({0: [3]})
    scheduler.add(make_request(1, [2] * 60, 40))
    plans = [scheduler.schedule() for _ in range(4)]
    assert [[(entry.id, entry.count) for entry in plan.scheduled] for plan in plans if plan] == [
        [(1, 10)],
        [(0, 1), (1, 9)],
        [(1, 10)],
        [(0, 1), (1, 9)],
    ]


@pytest.mark.parametrize(("stages", "count", "drafts"), [(1, 2, 3), (2, 1, 3), (2, 2, 0)])
def test_stages_guess_what_follows_of_one_that_runs_alone(stages: int, count: int, drafts: int) -> None:
    scheduler = Scheduler(Limits(8, 100, 4, stages=stages, drafts=3), 1000)
    for number in range(count):
        scheduler.add(make_request(number, [number] * 6, 40))
    assert scheduler.schedule()
    scheduler.update({number: [1] for number in range(count)})
    plan = scheduler.schedule()
    assert plan and {entry.drafts for entry in plan.scheduled} == {drafts}


def test_a_step_may_give_several_tokens_or_none() -> None:
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    request = make_request(0, [1] * 6, 20)
    scheduler.add(request)
    assert scheduler.schedule()
    assert (request.computed, request.planned, request.length) == (0, 6, 7)
    second = scheduler.schedule()
    assert second is not None and second.scheduled[0].count == 1
    scheduler.update({0: []})  # what may follow is not known yet: the second plan may still give it
    assert (request.computed, request.planned, request.length) == (5, 6, 7) and request.output == []
    third = scheduler.schedule()
    assert third is not None and third.scheduled[0].count == 1
    scheduler.update({0: [7]})
    scheduler.update({0: [8, 9]})  # and one that was guessed right
    assert request.output == [7, 8, 9] and (request.computed, request.planned, request.length) == (8, 8, 9)
    assert request.remembered == 2
    fourth = scheduler.schedule()
    assert fourth is not None and fourth.scheduled[0].count == 1
    scheduler.finish(request)
    scheduler.update({0: [1, 2, 3]})  # it has ended
    assert scheduler.pool.idle


def test_a_prompt_counts_as_computed_when_its_steps_are_done() -> None:
    scheduler = Scheduler(Limits(4, 10, 4), 100)
    request = make_request(0, [1] * 25, 5)
    scheduler.add(request)
    seen = []
    for result in ({}, {}, {0: [1]}):
        assert scheduler.schedule()
        scheduler.update(result)
        seen.append(request.computed)
    assert seen == [10, 20, 25]


def test_what_is_under_way_of_a_preempted_request_is_not_counted_when_it_comes_back() -> None:
    scheduler = Scheduler(Limits(4, 10, 4, prefix_caching=False), 100)
    request = make_request(0, [1] * 25, 5)
    scheduler.add(request)
    assert scheduler.schedule()
    scheduler._requeue(request)
    plan = scheduler.schedule()
    assert plan is not None and plan.dropped == [0] and [added.computed for added in plan.added] == [0]
    scheduler.update({})
    assert (request.computed, request.planned) == (0, 10)
    scheduler.update({})
    assert (request.computed, request.planned) == (10, 10)


def test_prefix_is_shared_while_it_is_being_prefilled() -> None:
    scheduler = Scheduler(Limits(4, 32, 4), 100)
    scheduler.add(make_request(0, list(range(40)), 5))
    assert scheduler.schedule() is not None
    later = make_request(1, list(range(40)), 5)
    scheduler.add(later)
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [0], "it waits a step instead of computing"
    assert scheduler.schedule() is not None
    assert later.cached_tokens == 36  # all whole blocks but the last, of which a token must be computed


def test_salt_isolates() -> None:
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    scheduler.add(make_request(0, [1] * 40, 5, b"a"))
    other = make_request(1, [1] * 40, 5, b"b")
    scheduler.add(other)
    assert scheduler.schedule() is not None
    assert other.cached_tokens == 0


def test_latest_arrival_is_preempted_and_resumes() -> None:
    scheduler = Scheduler(Limits(4, 100, 4, prefix_caching=False), 5)
    first, second = make_request(0, [1] * 7, 8), make_request(1, [2] * 4, 8)
    for request in (first, second):
        scheduler.add(request)
    plan = scheduler.schedule()
    assert plan is not None and len(plan.scheduled) == 2
    while not scheduler.stats.preemptions:
        scheduler.update({entry.id: [0] for entry in plan.scheduled})
        plan = scheduler.schedule()
        assert plan is not None
    assert list(scheduler.running) == [0] and list(scheduler.waiting) == [1]


def started(*requests: Request) -> tuple[Scheduler, Recovery]:
    """With these requests in their first step."""
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    for request in requests:
        scheduler.add(request)
    assert scheduler.schedule() is not None
    return scheduler, Recovery(scheduler)


def test_after_a_crash_one_at_a_time_until_each_has_given_a_token() -> None:
    scheduler, recovery = started(*(make_request(number, [number] * 6, 8) for number in range(3)))
    scheduler.add(make_request(3, [3] * 6, 8))
    assert recovery.restart() == []
    for number in range(3):
        plan = recovery.schedule()
        assert plan is not None and [entry.id for entry in plan.scheduled] == [number]
        recovery.update({number: [1]})
    plan = recovery.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [0, 1, 2, 3]


def test_who_gives_no_token_between_two_crashes_is_to_blame() -> None:
    requests = [make_request(number, [number] * 6, 8) for number in range(3)]
    scheduler, recovery = started(*requests)
    assert recovery.restart() == []
    assert recovery.schedule()
    recovery.update({0: [1]})
    assert recovery.schedule()
    recovery.update({1: []})  # a sign of life, but no token
    assert recovery.schedule()
    assert recovery.restart() == [requests[1]]
    scheduler.finish(requests[1])
    # The first one ran, too, and is tried again; the third is not known to be harmless.
    assert recovery.schedule()
    recovery.update({0: [1]})
    plan = recovery.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [0, 2]
    assert recovery.restart() == [requests[2]]


def test_a_suspect_without_room_runs_beside_the_others() -> None:
    scheduler = Scheduler(Limits(4, 100, 4, prefix_caching=False), 5)
    recovery = Recovery(scheduler)
    for number in range(2):
        scheduler.add(make_request(number, [number] * (8 - number), 9))
    assert recovery.schedule()
    recovery.update({0: [1], 1: [1]})
    assert recovery.schedule() and recovery.restart() == []
    for _ in range(3):
        plan = recovery.schedule()
        assert plan is not None and [entry.id for entry in plan.scheduled] == [0]
        assert list(scheduler.waiting) == [1]
        recovery.update({0: [1]})


def test_prompt_logprobs_take_their_share_of_a_step() -> None:
    scheduler = Scheduler(Limits(4, 100, 4, prompt_logprobs_cost=2.5), 100)
    costly = make_request(0, list(range(90)), 5)
    costly.params.prompt_logprobs = 20
    scheduler.add(costly)
    scheduler.add(make_request(1, [1] * 70, 5))
    plans = [scheduler.schedule() for _ in range(3)]
    counts = [[(entry.id, entry.count) for entry in plan.scheduled] for plan in plans if plan]
    assert counts == [[(0, 40)], [(0, 40)], [(0, 10), (1, 70)]]


def test_a_prefix_is_counted_when_a_request_begins_and_not_when_it_comes_back() -> None:
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    scheduler.add(make_request(0, [1] * 41, 50))
    assert scheduler.schedule() is not None
    late = make_request(1, [1] * 41, 50)
    scheduler.add(late)
    assert scheduler.schedule() is not None
    scheduler._requeue(late)
    scheduler.update({0: [1]})
    scheduler.update({0: [1], 1: [1]})
    assert scheduler.schedule() is not None and 1 in scheduler.running
    assert (scheduler.stats.prefix_queries, scheduler.stats.prefix_hits, late.cached_tokens) == (82, 40, 40)


def test_lower_priority_numbers_go_first() -> None:
    scheduler = Scheduler(Limits(2, 100, 4), 100)
    for number, priority in enumerate([5, 0, -1, 5]):
        request = make_request(number, [number] * 6, 8)
        request.priority = priority
        scheduler.add(request)
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [2, 1]


def test_a_step_takes_in_only_some_of_the_requests_whose_long_prompt_is_cached() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=256, max_num_batched_tokens=2048, block_size=16), 10_000)
    prompt = [number % 7 for number in range(8000)]
    first = make_request(0, prompt, 2)
    scheduler.add(first)
    while not first.output:
        assert scheduler.schedule()
        scheduler.update({0: [1]} if first.pending else {})
    for number in range(1, 40):
        scheduler.add(make_request(number, prompt, 2))
    taken = []
    while scheduler.waiting:
        plan = scheduler.schedule()
        assert plan is not None
        taken += [len(plan.added)]
    assert sum(taken) == 39 and min(taken) > 0
    assert max(taken) <= 5  # their tokens are what takes time, not those left to compute


def test_a_last_token_needs_no_block() -> None:
    """A prompt as long as the context, whose logprobs are wanted, may have all blocks that there are."""
    limits = Limits(max_num_seqs=2, max_num_batched_tokens=63, block_size=16)
    scheduler = Scheduler(limits, num_blocks=4)
    scheduler.add(make_request(1, [1] * 64, 1))
    counts = []
    while plan := scheduler.schedule():
        counts += [entry.count for entry in plan.scheduled]
        scheduler.update({1: [2]} if sum(counts) == 64 else {})
    assert counts == [63, 1]


def test_background_leaves_its_place_to_whoever_waits_for_it() -> None:
    """Without that an interactive request waits for a line of a batch to end: two places, both taken."""
    scheduler = Scheduler(Limits(2, 100, 4), 100)
    for number in (0, 1):
        line = make_request(number, [number + 1] * 6, 50)
        line.background = True
        scheduler.add(line)
    assert scheduler.schedule()
    scheduler.update({0: [1], 1: [1]})
    scheduler.add(make_request(2, [3] * 6, 5))
    plan = scheduler.schedule()
    assert plan is not None and [(entry.id, entry.count) for entry in plan.scheduled] == [(0, 1), (2, 6)]
    assert plan.dropped == [1] and scheduler.waiting.keys() == {1}


def test_background_leaves_its_blocks_to_whoever_waits_for_them() -> None:
    scheduler = Scheduler(Limits(8, 100, 4, prefix_caching=False), 10)
    line = make_request(0, [1] * 30, 5)
    line.background = True
    scheduler.add(line)
    assert scheduler.schedule()
    scheduler.update({0: [1]})
    scheduler.add(make_request(1, [2] * 20, 5))
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [1] and plan.dropped == [0]
    scheduler.update({1: [1]})
    plan = scheduler.schedule()  # and is not let in where its blocks do not fit beside those of others
    assert plan is not None and [entry.id for entry in plan.scheduled] == [1] and scheduler.waiting.keys() == {0}


def test_background_gets_what_others_leave_of_a_step() -> None:
    scheduler = Scheduler(Limits(8, 10, 4), 100)
    line = make_request(0, [1] * 25, 5)
    line.background = True
    scheduler.add(line)
    assert scheduler.schedule()
    scheduler.update({})
    scheduler.add(make_request(1, [2] * 8, 5))
    plan = scheduler.schedule()
    assert plan is not None and [(entry.id, entry.count) for entry in plan.scheduled] == [(1, 8), (0, 2)]


def test_background_does_not_move_for_one_that_could_not_begin_anyway() -> None:
    """What was preempted while its next token was under way waits for that token."""
    scheduler = Scheduler(Limits(1, 100, 4), 100)
    first = make_request(0, [1] * 6, 5)
    scheduler.add(first)
    assert scheduler.schedule()
    scheduler._requeue(first)
    line = make_request(1, [2] * 6, 5)
    line.background = True
    scheduler.add(line)
    assert first.pending == 1 and scheduler.schedule() is None
    scheduler.update({0: [1]})
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [0]
