"""The scheduler and the block pool alone, against a simulated worker that knows what every KV slot must hold."""

from __future__ import annotations

import random
from array import array
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophserve.engine.block_pool import block_key, salt_key
from sophserve.engine.request import Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.link.messages import StepPlan
from sophserve.sampling import SamplingParams

VOCABULARY = 5  # few tokens, so that prefixes often repeat


def next_token(tokens: list[int]) -> int:
    """What the simulated model says after these tokens."""
    return hash(tuple(tokens)) % VOCABULARY


def make_request(number: int, prompt: list[int], max_tokens: int, salt: bytes = b"") -> Request:
    return Request(number, prompt, SamplingParams(max_tokens=max_tokens), 0, max_tokens, [], root_key=salt)


class SimulatedWorker:
    """Runs plans in order. A slot of the KV cache holds the whole prefix (and salt) that its key was computed from."""

    def __init__(self, limits: Limits, salts: dict[int, bytes]) -> None:
        self.limits = limits
        self.salts = salts
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.tables: dict[int, list[int]] = {}
        self.slots: dict[int, tuple] = {}

    def run(self, plan: StepPlan) -> list[tuple[int, int]]:
        limits = self.limits
        assert plan.scheduled
        assert sum(entry.count for entry in plan.scheduled) <= limits.max_num_batched_tokens
        assert len(plan.scheduled) <= limits.max_num_seqs
        counts = [entry.count for entry in plan.scheduled]
        assert counts == sorted(counts, key=lambda count: count > 1), "single tokens come first"
        assert len({entry.id for entry in plan.scheduled}) == len(counts)
        for number in plan.dropped:
            for held in (self.tokens, self.computed, self.tables):
                held.pop(number, None)
        for added in plan.added:
            assert added.id not in self.tokens
            self.tokens[added.id] = array("i", added.token_ids).tolist()
            self.computed[added.id] = added.computed
            self.tables[added.id] = []
        assert len(self.tokens) <= limits.max_num_seqs
        sampled = []
        for entry in plan.scheduled:
            self._compute(entry.id, entry.count, entry.new_blocks)
            if self.computed[entry.id] == len(self.tokens[entry.id]):
                token = next_token(self.tokens[entry.id])
                self.tokens[entry.id].append(token)
                sampled.append((entry.id, token))
        return sampled

    def _compute(self, number: int, count: int, new_blocks: list[int]) -> None:
        size = self.limits.block_size
        tokens, table = self.tokens[number], self.tables[number]
        table += new_blocks
        start = self.computed[number]
        end = start + count
        assert count > 0 and end <= len(tokens)
        if not self.limits.chunked_prefill:
            assert end == len(tokens)
        for position in range(end):
            slot = table[position // size] * size + position % size
            prefix = (self.salts[number], tuple(tokens[: position + 1]))
            if position < start:
                assert self.slots[slot] == prefix, "the KV cache holds something else"
            else:
                self.slots[slot] = prefix
        self.computed[number] = end


class Simulation:
    """Random arrivals, cancels and results that come late."""

    def __init__(self, limits: Limits, num_blocks: int, depth: int, seed: int, priorities: int) -> None:
        self.random = random.Random(seed)
        self.limits = limits
        self.num_blocks = num_blocks
        self.depth = depth
        self.priorities = priorities
        self.scheduler = Scheduler(limits, num_blocks)
        self.salts: dict[int, bytes] = {}
        self.worker = SimulatedWorker(limits, self.salts)
        self.requests: dict[int, Request] = {}
        self.results: deque[list[tuple[int, int]]] = deque()
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
        request.priority = self.random.randint(0, self.priorities)
        self.requests[number] = request
        self.scheduler.add(request)

    def cancel(self) -> None:
        if self.requests:
            request = self.requests.pop(self.random.choice(list(self.requests)))
            self.scheduler.finish(request)

    def crash(self) -> None:
        self.results.clear()
        self.worker = SimulatedWorker(self.limits, self.salts)
        for request in self.scheduler.restart():
            assert request.id in self.scheduler.waiting
        self.check()

    def turn(self) -> None:
        while len(self.results) < self.depth and (plan := self.scheduler.schedule()):
            self.steps += 1
            self.results.append(self.worker.run(plan))
            self.check()
        if self.results:
            for number, token in self.results.popleft():
                if request := self.requests.get(number):
                    self.scheduler.update(request, token)
                    if len(request.output) == request.max_tokens:
                        self.scheduler.finish(request)
                        self.finished.append(self.requests.pop(number))
        self.check()

    def check(self) -> None:
        """The invariants of the scheduler and the pool."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        owned: dict[int, int] = {}
        for request in scheduler.running.values():
            assert len(request.blocks) * self.limits.block_size >= request.computed
            assert len(set(request.blocks)) == len(request.blocks)
            for block in request.blocks:
                owned[block] = owned.get(block, 0) + 1
        for request in scheduler.waiting.values():
            assert request.blocks == [] and request.computed == 0
        assert all(pool._owners[block] == owned.get(block, 0) for block in range(self.num_blocks))
        assert pool.used == len(owned)
        assert not owned.keys() & set(pool._free) and not owned.keys() & pool._cached.keys()
        assert not set(pool._free) & pool._cached.keys()
        assert len(set(pool._free)) == len(pool._free)
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of
        assert set(scheduler.running) | set(scheduler.waiting) == set(self.requests)
        assert not set(scheduler.running) & set(scheduler.waiting)

    def drain(self) -> None:
        # Every request ends after a bounded number of turns: none starves.
        bound = 50 + 10 * sum(len(r.prompt) + r.max_tokens for r in self.requests.values()) * (1 + len(self.requests))
        while self.requests:
            self.turn()
            bound -= 1
            assert bound > 0, "some request starves"


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([1, 2, 4, 16]),
    num_blocks=st.integers(2, 40),
    max_num_seqs=st.integers(1, 8),
    extra_tokens=st.integers(0, 60),
    depth=st.sampled_from([1, 2]),
    prefix_caching=st.booleans(),
    chunked_prefill=st.booleans(),
    priorities=st.sampled_from([0, 2]),
)
def test_random_traffic(
    seed: int,
    block_size: int,
    num_blocks: int,
    max_num_seqs: int,
    extra_tokens: int,
    depth: int,
    prefix_caching: bool,
    chunked_prefill: bool,
    priorities: int,
) -> None:
    limits = Limits(max_num_seqs, max_num_seqs + extra_tokens + 1, block_size, prefix_caching, chunked_prefill)
    simulation = Simulation(limits, num_blocks, depth, seed, priorities)
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
        for _ in range(request.max_tokens):
            tokens.append(next_token(tokens))
        assert request.token_ids() == tokens
    assert simulation.scheduler.pool.used == 0
    if not prefix_caching:
        assert simulation.scheduler.stats.prefix_hits == 0


def test_decodes_come_before_prefills_and_share_the_budget() -> None:
    scheduler = Scheduler(Limits(4, 10, 4), 100)
    first = make_request(0, [1] * 6, 5)
    scheduler.add(first)
    plan = scheduler.schedule()
    assert plan is not None and [entry.count for entry in plan.scheduled] == [6]
    scheduler.update(first, 3)
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
    scheduler.update(request, 1)
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
            for entry in under_way.popleft().scheduled:
                scheduler.update(requests[entry.id], 1)


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
        for request in (first, second):
            if request.pending:
                scheduler.update(request, 0)
        assert scheduler.schedule() is not None
    assert list(scheduler.running) == [0] and list(scheduler.waiting) == [1]


def test_after_a_crash_one_at_a_time_until_each_has_given_a_token() -> None:
    scheduler = Scheduler(Limits(4, 100, 4), 100)
    requests = [make_request(number, [number] * 6, 8) for number in range(3)]
    for request in requests:
        scheduler.add(request)
    assert scheduler.schedule() is not None
    late = make_request(3, [3] * 6, 8)
    scheduler.add(late)
    assert scheduler.restart() == requests
    for request in requests:
        plan = scheduler.schedule()
        assert plan is not None and [entry.id for entry in plan.scheduled] == [request.id]
        scheduler.update(request, 1)
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [0, 1, 2, 3]


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
    scheduler._preempt(late)
    scheduler.update(late, 1)
    assert scheduler.schedule() is not None and 1 in scheduler.running
    assert (scheduler.stats.prefix_queries, scheduler.stats.prefix_hits, late.cached_tokens) == (82, 40, 40)


def test_keys_do_not_depend_on_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Request, "token_ids")  # a step does not copy all that a request has
    at_once, growing = (make_request(number, [7, 8, 9, 10, 11], 50) for number in range(2))
    for token in range(30):
        growing.output.append(token)
        at_once.output.append(token)
        growing.keys(4)
    tokens = growing.prompt + growing.output
    expected = [b""]
    for start in range(0, 32, 4):
        expected.append(block_key(expected[-1], tokens[start : start + 4]))
    assert growing.keys(4) == at_once.keys(4) == expected[1:]


def test_lower_priority_numbers_go_first() -> None:
    scheduler = Scheduler(Limits(2, 100, 4), 100)
    for number, priority in enumerate([5, 0, -1, 5]):
        request = make_request(number, [number] * 6, 8)
        request.priority = priority
        scheduler.add(request)
    plan = scheduler.schedule()
    assert plan is not None and [entry.id for entry in plan.scheduled] == [2, 1]


def test_too_many_blocks_are_refused() -> None:
    pool = Scheduler(Limits(4, 100, 4), 5).pool
    with pytest.raises(ValueError, match="6 blocks wanted, 5 available"):
        pool.allocate(6)


def test_a_salt_cannot_pass_for_a_block() -> None:
    assert salt_key("") == b""
    first = [1] * 16
    assert len({block_key(salt_key(salt), first) for salt in ("", "a", "b", "cache salt:")}) == 4
    contents = array("i", first).tobytes().decode()
    assert block_key(salt_key(contents), first) != block_key(block_key(b"", first), first)


def test_a_step_takes_in_only_some_of_the_requests_whose_long_prompt_is_cached() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=256, max_num_batched_tokens=2048, block_size=16), 10_000)
    prompt = [number % 7 for number in range(8000)]
    first = make_request(0, prompt, 2)
    scheduler.add(first)
    while not first.pending:
        scheduler.schedule()
    scheduler.update(first, 1)
    for number in range(1, 40):
        scheduler.add(make_request(number, prompt, 2))
    taken = []
    while scheduler.waiting:
        plan = scheduler.schedule()
        assert plan is not None
        taken += [len(plan.added)]
    assert sum(taken) == 39 and min(taken) > 0
    assert max(taken) <= 5  # their tokens are what takes time, not those left to compute
