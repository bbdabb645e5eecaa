"""The workers as the engine sees them: one group, on however many hosts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from sophserve.config import EngineConfig
from sophserve.link.hosts import Hosts, RemoteRanks
from sophserve.link.local_ranks import LocalRanks
from sophserve.link.messages import (
    FromWorker,
    LoadFailed,
    LoadModel,
    ModelInfo,
    Profiled,
    Progress,
    StartProfile,
    StopProfile,
    ToWorker,
    decode_from_worker,
    encode,
)
from sophserve.logs import in_json


class WorkerGroup:
    """One worker for each rank of all stages. All get every plan; the first of the last stage answers. hosts: all of
    which are there, where ranks are to run on others than this one."""

    def __init__(
        self, directory: Path, config: EngineConfig, num_blocks: int | None = None, hosts: Hosts | None = None
    ) -> None:
        size = config.world_size
        level = logging.getLogger("sophserve").getEffectiveLevel()
        load = LoadModel(str(directory), config, 0, size, level, in_json(), num_blocks)
        self._answering = load.answering
        self._parts: list[LocalRanks | RemoteRanks] = []
        if hosts:
            load.places = hosts.places()
            self._parts = [LocalRanks(load, hosts.listeners), *hosts.start(load)]
        else:
            self._parts = [LocalRanks(load)]
        self._loading = {rank: Progress("starting the worker") for rank in range(size)}  # those that are not ready
        self._stages = [0] * size
        self._info: ModelInfo | None = None
        self._answers: dict[int, Profiled] = {}
        self._answered: asyncio.Future[list[Profiled]] | None = None
        self._ended = False

    @property
    def pulse(self) -> list[int]:
        """Numbers that change while the workers compute."""
        return [count for part in self._parts for count in part.pulse]

    def watch(self, on_message: Callable[[FromWorker], None], on_exit: Callable[[str], None]) -> None:
        """Deliver results, the progress of all ranks, ModelInfo once all are ready, any rank's LoadFailed, and
        the end of the group, with its cause in words, when the first rank ends."""

        def from_rank(rank: int, encoded: bytes) -> None:
            message = decode_from_worker(encoded)
            if isinstance(message, ModelInfo):
                self._loading.pop(rank, None)
                self._info = message if rank == self._answering else self._info
                if not self._loading and self._info:
                    on_message(self._info)
            elif isinstance(message, Progress):
                on_message(self._progress_with(rank, message))
            elif isinstance(message, Profiled):
                self._answers[rank] = message
                if len(self._answers) == len(self._stages):
                    self._end_asking()
            elif rank == self._answering or isinstance(message, LoadFailed):
                on_message(message)

        def ended(cause: str) -> None:
            if not self._ended:
                self._end()
                on_exit(cause)

        for part in self._parts:
            part.watch(from_rank, ended)

    def _progress_with(self, rank: int, progress: Progress) -> Progress:
        """The stage of the ranks that are behind, and how far all together are with the weights, now that one rank has
        told how far it is."""
        if progress.stage != self._loading[rank].stage:
            self._stages[rank] += 1
        self._loading[rank] = progress
        stage = self._loading[min(self._loading, key=lambda rank: self._stages[rank])].stage
        counted = [each for each in self._loading.values() if each.stage == stage and each.total]
        return Progress(stage, sum(each.done for each in counted), sum(each.total for each in counted))

    def send(self, message: ToWorker) -> None:
        """Send a message to every rank without waiting."""
        encoded = encode(message)
        for part in self._parts:
            part.send(encoded)

    async def ask(self, message: StartProfile | StopProfile) -> list[Profiled]:
        """Send a message to every rank and wait for all answers, or for fewer if a worker ends. One at a time."""
        if self._ended:
            return []
        self._answers, self._answered = {}, asyncio.get_running_loop().create_future()
        self.send(message)
        return await self._answered

    def _end(self) -> None:
        self._ended = True
        for part in self._parts:
            part.stop_watching()
        self._end_asking()

    def _end_asking(self) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_result([self._answers[rank] for rank in sorted(self._answers)])

    async def close(self, kill: bool) -> None:
        """Let the workers exit, or kill them, and release everything that was shared with them."""
        self._end()
        await asyncio.gather(*(part.close(kill) for part in self._parts))
