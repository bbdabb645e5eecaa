"""The workers as the engine has them: loaded under watch, watched while they compute, begun anew when they are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, EngineDeadError, SophserveError
from sophserve.link.hosts import Hosts
from sophserve.link.messages import CompileGrammar, FromWorker, LoadFailed, ModelInfo, Progress, StepPlan, StepResult
from sophserve.link.workers import WorkerGroup

log = logging.getLogger(__name__)

# Losing the workers more than max_restarts times in this many seconds ends the engine.
RESTART_PERIOD = 600.0
# Seconds before a restart that follows one that failed, at first; each further one waits twice as long.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class Supervisor:
    """Starts workers, sends them plans, and knows whether they live: every result, every step and, while they load,
    every piece of progress is a sign of life.

    on_result is called with every step's result, on_lost when the workers are lost; then `restart` is to be awaited.
    hosts: where ranks are to run on others than this one, which are waited for whenever they are started.
    progress: how far loading is, the first time or after a restart; on_progress: called whenever that changes.
    """

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        on_result: Callable[[StepResult], None],
        on_lost: Callable[[], None],
        hosts: Hosts | None = None,
    ) -> None:
        self.progress = Progress("starting the worker")
        self.on_progress: Callable[[], None] | None = None
        self.group: WorkerGroup | None = None
        self.lost: str | None = None  # why the workers must be restarted
        self.restarts = 0
        self.in_flight = 0  # plans
        self._directory = directory
        self._config = config
        self._on_result = on_result
        self._on_lost = on_lost
        self._hosts = hosts
        self._problem = ""  # that ends the engine
        self._info: ModelInfo | None = None
        self._loaded: asyncio.Future[ModelInfo] | None = None
        self._restart_times: deque[float] = deque()
        self._pulse: list[int] = []
        self._beat = time.monotonic()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the workers were last seen alive, 0 while they have nothing to do."""
        return time.monotonic() - self._beat if self.in_flight else 0.0

    def start(self) -> None:
        """Start the worker processes, which takes seconds, and return at once. Needs no event loop. Where there are
        other hosts, load and restart do it, once these are there."""
        if not self._hosts:
            self.group = self._new_group()

    def _new_group(self) -> WorkerGroup:
        # The scheduler counts on the blocks that the first workers had.
        blocks = self._info.num_blocks if self._info else None
        return WorkerGroup(self._directory, self._config, blocks, self._hosts)

    async def load(self) -> ModelInfo:
        """Wait until the model is loaded. Raises ConfigError with the worker's reason, EngineDeadError if it dies, or
        makes no progress again and again."""
        with self._noting_problems():
            while self._info is None:
                try:
                    self._info = await self._load()
                except _Stalled as error:
                    self.lost = str(error)
                    log.error("%s; restarting", self.lost)
                    await self._begin_restart()
        return self._info

    async def restart(self) -> ModelInfo:
        """Start new workers until some have loaded the model. Raises EngineDeadError when that was tried too often."""
        pause = 0.0
        with self._noting_problems():
            while self.lost:
                await asyncio.sleep(pause)
                pause = min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
                # Whatever keeps workers from starting, such as a want of descriptors or memory, may pass.
                try:
                    await self._begin_restart()
                    self._check_same(await self._load())
                except (_Stalled, _Died, ConfigError, OSError) as error:
                    self.lost = str(error)
                    log.error("%s; restarting again", self.lost)
                    self._report(Progress(f"restarting the worker again, for {error}"))
        assert self._info is not None
        log.info("the worker is back")
        return self._info

    async def close(self, kill: bool) -> None:
        """Let the workers exit, and other hosts with them, or kill the workers to start others."""
        group, self.group = self.group, None
        self.in_flight = 0
        if group:
            await group.close(kill)
        if self._hosts and not kill:
            await self._hosts.close(self._problem)

    @contextmanager
    def _noting_problems(self) -> Iterator[None]:
        try:
            yield
        except SophserveError as error:
            self._problem = str(error)
            raise

    def send(self, message: StepPlan | CompileGrammar) -> None:
        """Send a message to every rank without waiting."""
        assert self.group is not None
        if isinstance(message, StepPlan):
            if self.in_flight == 0:
                self._beat = time.monotonic()
            self.in_flight += 1
        self.group.send(message)

    def on_leaving(self, call: Callable[[], None]) -> None:
        """Call this when another host is told to stop."""
        if self._hosts:
            self._hosts.on_leaving = call

    async def watch(self) -> None:
        """See, for ever, whether the workers still move while they have something to do."""
        timeout = self._config.step_timeout
        period = min(1.0, timeout / 4)
        while True:
            before = time.monotonic()
            await asyncio.sleep(period)
            if time.monotonic() - before > period + timeout / 2:
                self._beat = time.monotonic()  # this process stood still, and saw nothing
            self._look()
            if self.heartbeat_age > timeout and self.lost is None:
                self._lose(f"the worker has not moved for {timeout:g} s (--step-timeout)")

    async def _begin_restart(self) -> None:
        """Count a restart, and start new workers. Raises EngineDeadError, or OSError."""
        now = time.monotonic()
        self._restart_times.append(now)
        while self._restart_times[0] < now - RESTART_PERIOD:
            self._restart_times.popleft()
        if len(self._restart_times) > self._config.max_restarts:
            raise EngineDeadError(
                f"{self.lost}, and {self._config.max_restarts} restarts in {RESTART_PERIOD / 60:g} minutes are all "
                "that --max-restarts allows"
            )
        self.restarts += 1
        await self.close(kill=True)
        self.start()

    async def _load(self) -> ModelInfo:
        if self.group is None:
            if self._hosts:
                await self._hosts.gather(self._config.load_timeout, self._report)
            self.group = self._new_group()
        loaded = self._loaded = asyncio.get_running_loop().create_future()
        timeout = self._config.load_timeout
        self._beat = time.monotonic()
        self.group.watch(self._on_message, self._on_exit)
        while not (await asyncio.wait([loaded], timeout=min(1.0, timeout / 4)))[0]:
            self._look()
            if time.monotonic() - self._beat > timeout:
                stage = self.progress.stage
                raise _Stalled(f"the worker made no progress for {timeout:g} s (--load-timeout) while {stage}")
        return await loaded

    def _look(self) -> None:
        pulse = self.group.pulse if self.group else []
        if pulse != self._pulse:
            self._pulse, self._beat = pulse, time.monotonic()

    def _check_same(self, info: ModelInfo) -> None:
        """Raise ConfigError if new workers loaded something else than those before them."""
        assert self._info is not None
        for name in ("max_model_len", "vocab_size", "dtype", "block_size", "num_blocks"):
            old, new = getattr(self._info, name), getattr(info, name)
            if old != new:
                self.lost = f"the new worker has another {name}, {new} instead of {old}: was the checkpoint changed?"
                raise ConfigError(self.lost)
        self._info = info

    def _report(self, progress: Progress) -> None:
        self.progress = progress
        if self.on_progress:
            self.on_progress()

    def _on_message(self, message: FromWorker) -> None:
        self._beat = time.monotonic()
        match message:
            case StepResult():
                self.in_flight -= 1
                self._on_result(message)
            case Progress():
                self._report(message)
            case ModelInfo() if self._loaded and not self._loaded.done():
                # Not when the engine's task wakes up: by then the worker may be lost again.
                self.lost = None
                self._loaded.set_result(message)
            case LoadFailed() if self._loaded and not self._loaded.done():
                self._loaded.set_exception(ConfigError(message.message))

    def _on_exit(self, cause: str) -> None:
        if self._loaded and not self._loaded.done():
            self._loaded.set_exception(_Died(f"{cause} while it loaded the model; its log says more"))
        else:
            self._lose(cause)

    def _lose(self, cause: str) -> None:
        self.lost = cause
        self._on_lost()


class _Died(EngineDeadError):
    """A worker ended while it loaded."""


class _Stalled(EngineDeadError):
    """Workers that load, and do not get on."""
