"""The engine over workers that do only what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.config import EngineConfig
from sophserve.engine.engine import Engine
from sophserve.errors import RequestAborted
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer
from sophserve.worker.messages import FromWorker, ModelInfo, StepPlan

INFO = ModelInfo(
    max_model_len=64, vocab_size=512, dtype="float32", device="none", block_size=16, num_blocks=8, kv_cache_bytes=0
)


class Workers:
    """Take plans, and answer none."""

    pulse: list[int]

    def __init__(self) -> None:
        self.pulse = [0]
        self.plans: list[StepPlan] = []

    def send(self, plan: StepPlan) -> None:
        self.plans.append(plan)

    async def close(self, kill: bool) -> None:
        pass


class EngineAlone(Engine):
    """An engine with such workers."""

    async def _load(self) -> ModelInfo:
        self.workers = Workers()
        self._workers: Any = self.workers
        return INFO


class MortalWorkers(Workers):
    """Load at once, and end with the first plan, in the moment in which they are loaded, or never."""

    def __init__(self, death: str | None) -> None:
        super().__init__()
        self.death = death
        self.ended = False

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        self.on_exit = on_exit
        on_message(INFO)
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


class EngineThatLoses(Engine):
    """An engine that loses its first three groups of workers."""

    deaths = ("plan", "loaded", "loaded", None)

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        super().__init__(config, directory)
        self.groups: list[MortalWorkers] = []

    def start_worker(self) -> None:
        self.groups.append(MortalWorkers(self.deaths[len(self.groups)]))
        self._workers: Any = self.groups[-1]


@pytest.fixture
async def start_engine(make_checkpoint: Callable[..., Path]) -> AsyncIterator[Callable[..., Any]]:
    """`await start_engine(EngineAlone, **options)`."""
    engines = []

    async def start(kind: type[Engine] = EngineAlone, **options: Any) -> Engine:
        directory = make_checkpoint("qwen2")
        engine = kind(EngineConfig(model=str(directory), **options), directory)
        await engine.start(Tokenizer.from_directory(directory))
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
    assert engine.sequences == [] and (engine.num_running, engine.num_waiting) == (0, 0)


async def test_a_worker_that_is_lost_as_soon_as_it_is_loaded(start_engine: Callable[..., Any]) -> None:
    engine = await start_engine(EngineThatLoses)
    task = asyncio.create_task(read(engine, "one"))
    async with asyncio.timeout(5):
        while len(engine.groups) < 4 or not engine.groups[3].plans:
            assert not engine.died.is_set()
            await asyncio.sleep(0.005)
    assert [bool(group.plans) for group in engine.groups] == [True, False, False, True]
    assert engine.ready
    task.cancel()
