"""A request whose grammar takes long gets its tokens later, the same ones, and the others do not wait for it."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sophserve.config import EngineConfig
from sophserve.engine.request import Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.link.messages import LoadModel, StepPlan, StepResult
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.worker.model_runner import ModelRunner

FORM = StructuredOutput("regex", "[a-z]{300}")
END = 2


@pytest.fixture(scope="module", params=[False, True], ids=["captured", "eager"])
def runner(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> ModelRunner:
    directory = str(make_checkpoint("qwen2"))
    config = EngineConfig(model=directory, kv_cache_memory="16MiB", enforce_eager=request.param)
    return ModelRunner(LoadModel(directory, config, 0, 1, 20), [-1], lambda: None, lambda _: None)


class Run:
    """The engine's part: two plans under way, as ever."""

    def __init__(self, runner: ModelRunner, blocks: int = 100) -> None:
        self.runner = runner
        self.scheduler = Scheduler(Limits(8, 64, 16, prefix_caching=False), blocks)
        self.requests: dict[int, Request] = {}
        self.deferred = 0
        self._results: deque[StepResult] = deque()

    def add(self, identity: int, form: StructuredOutput | None, **options: Any) -> Request:
        params = SamplingParams(max_tokens=30, min_tokens=30, structured=form, **options)
        prompt = [identity + 5] * 20
        request = self.requests[identity] = Request(identity, prompt, params, 7, 30, [END])
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        plan: StepPlan | None = None
        while len(self._results) < 2 and (plan := self.scheduler.schedule()):
            self._results.append(self.runner.execute(plan))
        result = self._results.popleft()
        self.deferred += sum(not sampled.tokens for sampled in result.sampled)
        self.scheduler.update({sampled.id: sampled.tokens for sampled in result.sampled})
        for sampled in result.sampled:
            request = self.requests[sampled.id]
            if request.id in self.scheduler.running or request.id in self.scheduler.waiting:
                assert sampled.error is None
                if len(request.output) == request.max_tokens or END in sampled.tokens:
                    self.scheduler.finish(request)

    def finish(self) -> dict[int, list[int]]:
        for _ in range(2000):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            self.step()
        # What is still under way has ended; the worker forgets it.
        self.runner.execute(StepPlan(0, list(self.requests), [], []))
        return {identity: request.output for identity, request in self.requests.items()}


def everyone(run: Run) -> Run:
    for identity, form in enumerate((None, FORM, None, FORM)):
        run.add(identity, form, temperature=1.0, logit_bias={40: 2.0})
    return run


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Closed at first: no grammar is compiled before it opens."""
    gate, compile_grammar = threading.Event(), GrammarCompiler.compile

    def compiled(self: GrammarCompiler, structured: StructuredOutput) -> Any:
        assert gate.wait(60)
        return compile_grammar(self, structured)

    monkeypatch.setattr(GrammarCompiler, "compile", compiled)
    yield gate
    gate.set()


def test_others_go_on_while_a_grammar_is_compiled(runner: ModelRunner, gate: threading.Event) -> None:
    assert runner._grammars is not None
    runner._grammars._compiled.clear()
    run = everyone(Run(runner))
    for _ in range(20):
        run.step()
    lengths = [len(request.output) for request in run.requests.values()]
    assert lengths[1] == lengths[3] == 0 and min(lengths[0], lengths[2]) >= 15 and run.deferred >= 20
    gate.set()
    late = run.finish()
    assert late == everyone(Run(runner)).finish()
    assert runner._grammars._compiler is not None
    tokens = runner._grammars._compiler.result().vocabulary.tokens
    assert re.fullmatch(b"[a-z]+", b"".join(tokens[token] for token in late[1] if token != END))


@pytest.mark.parametrize("blocks", [100, 9])
def test_masks_that_come_late_change_nothing(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    undisturbed = everyone(Run(runner)).finish()
    calls, mask = 0, AnswerGrammar.mask

    def late(self: AnswerGrammar, output: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            threading.Event().wait(0.12)
        return mask(self, output)

    monkeypatch.setattr(AnswerGrammar, "mask", late)
    run = everyone(Run(runner, blocks))  # with few blocks requests are preempted, some while they wait for a mask
    assert run.finish() == undisturbed
    assert run.deferred and (blocks > 50 or run.scheduler.stats.preemptions)


def test_a_grammar_that_fails_fails_its_request(runner: ModelRunner) -> None:
    run = Run(runner)
    run.add(0, StructuredOutput("regex", "("))
    run.add(1, None)
    errors = {}
    while not errors:
        plan = run.scheduler.schedule()
        assert plan is not None
        result = runner.execute(plan)
        run.scheduler.update({sampled.id: sampled.tokens for sampled in result.sampled})
        errors = {sampled.id: sampled.error for sampled in result.sampled if sampled.error}
    assert list(errors) == [0] and "unclosed" in str(errors[0])
    for request in run.requests.values():
        run.scheduler.finish(request)
    run.finish()
