"""Stages compute different plans at the same time. Here they do so in turns, within one thread: whoever waited for
another one would wait for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sophserve.config import EngineConfig
from sophserve.engine.request import Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.link.messages import LoadModel, StepPlan
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.worker.model_runner import ModelRunner

FORM = StructuredOutput("regex", "[a-z]{300}")
TOKENS = 40


@pytest.fixture
def make_runners(make_checkpoint: Callable[..., Path]) -> Iterator[Callable[[int], list[ModelRunner]]]:
    """`make_runners(stages)`: a rank of each."""
    directory = str(make_checkpoint("qwen2"))
    with ExitStack() as undo:

        def make(stages: int) -> list[ModelRunner]:
            config = EngineConfig(model=directory, kv_cache_memory="4MiB", pipeline_parallel_size=stages)
            loads = [LoadModel(directory, config, rank, stages, 20, num_blocks=100) for rank in range(stages)]
            memories = [os.memfd_create("test") for _ in loads[0].groups]
            for memory in memories:
                undo.callback(os.close, memory)
                os.truncate(memory, 1 << 20)
            return [ModelRunner(load, memories, lambda: None, lambda _: None) for load in loads]

        yield make


class Run:
    """The engine's part. Each stage is as far ahead as it may be: the last one goes on when no other can."""

    def __init__(self, runners: list[ModelRunner], blocks: int) -> None:
        self.runners = runners
        self.scheduler = Scheduler(Limits(8, 16, 16, stages=len(runners)), blocks)
        self.requests: dict[int, Request] = {}
        self.plans: list[StepPlan] = []
        self.gives: list[set[int]] = []  # by plan: the requests that it gives tokens
        self.done = [0] * len(runners)
        self.ahead: list[int] = []  # by plan: how many before it were not done when the first stage computed it

    def add(self, prompt: list[int], form: StructuredOutput | None = None) -> None:
        number = len(self.requests)
        params = SamplingParams(max_tokens=TOKENS, min_tokens=TOKENS, temperature=1, structured=form)
        self.requests[number] = Request(number, prompt, params, number, TOKENS, [2])
        self.scheduler.add(self.requests[number])

    def plan(self) -> None:
        """As many plans as the engine has under way."""
        while len(self.plans) - self.done[-1] <= len(self.runners):
            before = {number: request.pending for number, request in self.requests.items()}
            plan = self.scheduler.schedule()
            if plan is None:
                return
            self.plans.append(plan)
            self.gives.append({number for number, count in before.items() if self.requests[number].pending > count})

    def can_execute(self, stage: int) -> bool:
        place, done = self.done[stage], self.done[-1]
        if place == len(self.plans) or (stage and self.done[stage - 1] == place):
            return False
        numbers = {entry.id for entry in self.plans[place].scheduled}
        known = not any(numbers & given for given in self.gives[done:place])
        return known and place - done < len(self.runners) - stage

    def execute(self, stage: int) -> None:
        if stage == 0:
            self.ahead.append(self.done[0] - self.done[-1])
        result = self.runners[stage].execute(self.plans[self.done[stage]])
        self.done[stage] += 1
        if stage == len(self.runners) - 1:
            self.scheduler.update({sampled.id: sampled.tokens for sampled in result.sampled})
            for request in self.requests.values():
                if request.id in self.scheduler.running and len(request.output) == request.max_tokens:
                    self.scheduler.finish(request)
            self.plan()

    def finish(self) -> None:
        self.plan()
        while (stage := next(filter(self.can_execute, range(len(self.runners))), None)) is not None:
            self.execute(stage)


def run(runners: list[ModelRunner], blocks: int) -> Run:
    found = Run(runners, blocks)
    for number in range(6):
        found.add([number + 5] * (4 + 9 * number), FORM if number % 3 == 1 else None)
    thread = threading.Thread(target=found.finish, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a stage waits for another one"
    assert found.done[-1] == len(found.plans) and not found.scheduler.running
    return found


@pytest.mark.parametrize(("stages", "blocks"), [(2, 100), (3, 100), (3, 8)])
def test_the_first_stage_goes_on_before_the_tokens_are_chosen(
    stages: int, blocks: int, make_runners: Callable[[int], list[ModelRunner]]
) -> None:
    together = run(make_runners(stages), blocks)
    assert together.ahead.count(stages - 1) > len(together.plans) / 3
    assert (together.scheduler.stats.preemptions > 0) == (blocks < 100)
    alone = run(make_runners(1), 100)
    assert [each.output for each in together.requests.values()] == [each.output for each in alone.requests.values()]
