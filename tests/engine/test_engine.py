"""The engine over workers that do only what a test says."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from sophserve.config import EngineConfig
from sophserve.engine.engine import Engine
from sophserve.engine.sequence import Sequence
from sophserve.errors import EngineDeadError, RequestAborted
from sophserve.link.messages import FromWorker, LoadFailed, ModelInfo, Progress, SampledTokens, StepPlan, StepResult
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.text.tokenizer import Tokenizer

INFO = ModelInfo(
    max_model_len=64, vocab_size=512, dtype="float32", device="none", block_size=16, num_blocks=8, kv_cache_bytes=0
)


class Workers:
    """Load at once, take plans, and answer none."""

    pulse: list[int]

    def __init__(self, num_blocks: int | None) -> None:
        self.pulse = [0]
        self.num_blocks = num_blocks
        self.plans: list[StepPlan] = []

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        self.on_message, self.on_exit = on_message, on_exit
        on_message(self.info())

    def info(self) -> ModelInfo:
        return replace(INFO, num_blocks=self.num_blocks or INFO.num_blocks)

    def send(self, plan: StepPlan) -> None:
        self.plans.append(plan)

    async def close(self, kill: bool) -> None:
        pass


class EngineAlone(Engine):
    """An engine with such workers; `groups` has those of every start."""

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        self.groups: list[Any] = []
        super().__init__(config, directory)

    def start_group(self, directory: Path, config: EngineConfig, num_blocks: int | None, hosts: None) -> Any:
        self.groups.append(self.make_group(num_blocks))
        return self.groups[-1]

    def make_group(self, num_blocks: int | None) -> Any:
        return Workers(num_blocks)


class MortalWorkers(Workers):
    """End with the first plan, in the moment in which they are loaded, or never."""

    def __init__(self, death: str | None, num_blocks: int | None) -> None:
        super().__init__(num_blocks)
        self.death = death
        self.ended = False

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        super().watch(on_message, on_exit)
        if self.death == "loaded":
            self._end()

    def send(self, message: Any) -> None:
        assert not self.ended
        super().send(message)
        if self.death == "plan":
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_exit("the worker process was killed by signal 9")


class EngineThatLoses(EngineAlone):
    """An engine that loses its first three groups of workers."""

    deaths = ("plan", "loaded", "loaded", None)

    def make_group(self, num_blocks: int | None) -> MortalWorkers:
        return MortalWorkers(self.deaths[len(self.groups)], num_blocks)


@pytest.fixture
def make_engine(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`make_engine(EngineAlone, **options)`, one a test."""

    def make(kind: type[EngineAlone], **options: Any) -> EngineAlone:
        directory = make_checkpoint("qwen2")
        engine = kind(EngineConfig(model=str(directory), **options), directory)
        monkeypatch.setattr("sophserve.engine.supervisor.WorkerGroup", engine.start_group)
        return engine

    return make


@pytest.fixture
async def start_engine(make_engine: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """`await start_engine(EngineAlone, **options)`."""
    engines = []

    async def start(kind: type[EngineAlone] = EngineAlone, **options: Any) -> Engine:
        engine = make_engine(kind, **options)
        await engine.start(Tokenizer.from_directory(engine.directory))
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.close()


async def read(engine: Engine, request_id: str) -> None:
    """Wait for an answer to its end."""
    async for _ in engine.generate([5, 6, 7], SamplingParams(), request_id):
        pass


async def test_a_request_that_waits_too_long_is_refused(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(max_num_seqs=1, max_queue_time=0.05)
    first = asyncio.create_task(read(engine, "first"))
    await asyncio.sleep(0)
    with pytest.raises(RequestAborted, match=r"as long as --max-queue-time allows") as caught:
        await asyncio.wait_for(read(engine, "second"), 5)
    assert caught.value.code == "queue_timeout"
    assert [sequence.request_id for sequence in engine.sequences] == ["first"]
    assert not first.done()
    first.cancel()


async def test_abort(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(max_num_seqs=1)
    tasks = [asyncio.create_task(read(engine, name)) for name in ("running", "waiting")]
    await asyncio.sleep(0.01)
    assert [bool(sequence.request.blocks) for sequence in engine.sequences] == [True, False]
    for sequence in engine.sequences:
        engine.abort(sequence, RequestAborted("enough", "cancelled"))
    for task in tasks:
        with pytest.raises(RequestAborted, match="enough"):
            await asyncio.wait_for(task, 5)
    assert engine.sequences == [] and not engine._scheduler.running and not engine._scheduler.waiting


async def test_a_worker_that_is_lost_as_soon_as_it_is_loaded(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(EngineThatLoses)
    task = asyncio.create_task(read(engine, "one"))
    async with asyncio.timeout(5):
        while len(engine.groups) < 4 or not engine.groups[3].plans:
            assert not engine.died.is_set()
            await asyncio.sleep(0.005)
    assert [bool(group.plans) for group in engine.groups] == [True, False, False, True]
    assert [group.num_blocks for group in engine.groups] == [None, 8, 8, 8]
    assert engine.ready
    task.cancel()


class StillWorkers(Workers):
    """Their pulse never moves; every `pause` seconds they answer a plan with a token."""

    pause = 0.05

    def send(self, plan: Any) -> None:
        super().send(plan)
        asyncio.get_running_loop().call_later(self.pause, self._answer, plan)

    def _answer(self, plan: StepPlan) -> None:
        sampled = [SampledTokens(entry.id, [5]) for entry in plan.scheduled]
        self.on_message(StepResult(plan.step, sampled, []))


class EngineOfStillWorkers(EngineAlone):
    make_group = staticmethod(StillWorkers)


async def test_results_are_a_sign_of_life(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(EngineOfStillWorkers, step_timeout=0.4)
    tokens, ages = 0, []
    async with asyncio.timeout(20):
        async for delta in engine.generate([5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True), "one"):
            tokens += len(delta.token_ids)
            ages.append(engine.workers.heartbeat_age)
    assert tokens == 40 and len(engine.groups) == 1
    assert max(ages) < 0.4


async def test_workers_that_neither_move_nor_answer_are_restarted(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(EngineAlone, step_timeout=0.2)
    task = asyncio.create_task(read(engine, "one"))
    async with asyncio.timeout(10):
        while len(engine.groups) < 2:
            await asyncio.sleep(0.02)
    task.cancel()


class EngineThatCannotRestart(EngineThatLoses):
    """Loses its workers with the first plan; the next starts fail, each in another way."""

    deaths = ("plan", None, None, None, None)
    seen: list[str]

    def make_group(self, num_blocks: int | None) -> Any:
        number = len(self.groups)
        self.seen = [*getattr(self, "seen", []), self.workers.progress.stage]
        if number == 1:
            self.groups.append(None)
            raise OSError(errno.EMFILE, "Too many open files")
        group = super().make_group(num_blocks)
        if number == 2:
            group.info = lambda: LoadFailed("the model does not fit in memory")
        elif number == 3:
            group.info = lambda: replace(INFO, vocab_size=500)
        return group


async def test_whatever_keeps_workers_from_starting_is_tried_again(
    start_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sophserve.engine.supervisor.FIRST_PAUSE", 0.01)
    engine = await start_engine(EngineThatCannotRestart)
    task = asyncio.create_task(read(engine, "one"))
    async with asyncio.timeout(10):
        while len(engine.groups) < 5 or not engine.groups[4].plans:
            assert not engine.died.is_set()
            await asyncio.sleep(0.005)
    reasons = ["Too many open files", "does not fit in memory", "another vocab_size, 500 instead of 512"]
    assert all(reason in stage for reason, stage in zip(reasons, engine.seen[2:], strict=True))
    assert engine.ready and engine.metrics.counts.restarts == 4
    task.cancel()


class SlowLoaders(Workers):
    """Load when they are told to."""

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        self.on_message, self.on_exit = on_message, on_exit


class EngineOfSlowLoaders(EngineAlone):
    make_group = staticmethod(SlowLoaders)


async def test_loading_is_bounded_by_progress_and_not_by_time(make_engine: Callable[..., Any]) -> None:
    engine = make_engine(EngineOfSlowLoaders, load_timeout=0.4)
    task = asyncio.create_task(engine.start(Tokenizer.from_directory(engine.directory)))
    await asyncio.sleep(0.05)
    for step in range(16):  # of 0.05 s, in all twice the timeout
        if step % 2:
            engine.groups[0].on_message(Progress("loading weights", step, 16))
        else:
            engine.groups[0].pulse = [step]
        await asyncio.sleep(0.05)
    assert len(engine.groups) == 1
    async with asyncio.timeout(10):
        while len(engine.groups) < 2:
            await asyncio.sleep(0.02)
        engine.groups[1].on_message(INFO)
        await task
    assert engine.ready
    await engine.close()


async def test_loading_that_stands_is_given_up_by_its_stage(make_engine: Callable[..., Any]) -> None:
    engine = make_engine(EngineOfSlowLoaders, load_timeout=0.1, max_restarts=1)
    message = r"made no progress for 0.1 s \(--load-timeout\) while starting the worker, and 1 restarts in 10 minutes"
    with pytest.raises(EngineDeadError, match=message):
        await asyncio.wait_for(engine.start(Tokenizer.from_directory(engine.directory)), 10)
    assert len(engine.groups) == 2
    await engine.close()


class WaitingCheck:
    """A grammar's trial that takes until the test lets it go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def check(self, *_: Any) -> None:
        await self.let_go.wait()

    async def close(self) -> None:
        pass


async def test_nobody_is_queued_at_a_dead_engine(start_engine: Callable[..., Any]) -> None:
    """It ends while a request waits for the trial of its grammar."""
    engine = await start_engine(EngineThatLoses, max_restarts=0)
    trial = engine._grammars = WaitingCheck()
    params = SamplingParams(structured=StructuredOutput("json_object"))
    answer = engine.generate([5, 6, 7], params, "structured")
    waiting = asyncio.create_task(anext(answer))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(read(engine, "kills"), 5)
    trial.let_go.set()
    with pytest.raises(EngineDeadError, match="not running"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(EngineDeadError, match="not running"):
        await asyncio.wait_for(engine.embed([5], "last", "text"), 5)
    assert engine.sequences == []


async def test_it_tells_when_it_is_done_with_an_answer_that_nobody_reads(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine()
    begun: list[Sequence] = []
    ended: list[Sequence] = []
    watcher: Any = SimpleNamespace(begin_one=begun.append, end_one=ended.append)
    answer = engine.generate([5, 6, 7], SamplingParams(max_tokens=3), "unread", watcher=watcher)
    reader = asyncio.create_task(anext(answer))
    for step, token in enumerate((70, 71, 72), start=1):
        assert not ended
        async with asyncio.timeout(5):
            while len(engine.groups[-1].plans) < step:
                await asyncio.sleep(0)
        engine.groups[-1].on_message(StepResult(step, [SampledTokens(begun[0].request.id, [token])], []))
    assert ended == begun and not engine.sequences
    said = (await reader).token_ids
    assert begun[0].stream.held > 0
    said += (await anext(answer)).token_ids
    assert said == [70, 71, 72] and begun[0].stream.held == 0
    await answer.aclose()
    assert len(ended) == 1


async def test_blocks_that_nobody_owns_are_freed_loudly(
    start_engine: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start_engine(EngineOfStillWorkers)
    pool = engine._scheduler.pool

    async def answer() -> list[int]:
        answer = engine.generate([5, 6, 7], SamplingParams(max_tokens=2), "one")
        return [token async for delta in answer for token in delta.token_ids]

    assert await answer() == [5, 5]
    await asyncio.sleep(0)
    assert pool.idle and not caplog.records
    pool.allocate(2)  # by nobody
    assert await answer() == [5, 5]
    await asyncio.sleep(0)
    assert pool.idle and pool.available == INFO.num_blocks
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "although nothing runs (2 of them)" in record.getMessage()
