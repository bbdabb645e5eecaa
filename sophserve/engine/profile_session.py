"""Starts and stops the profile of an engine's workers, and goes on with it when they are restarted."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from sophserve.errors import ConfigError, RequestError
from sophserve.link.messages import Profiled, StartProfile, StopProfile
from sophserve.link.workers import WorkerGroup
from sophserve.profile_format import ProfileOptions, next_index

log = logging.getLogger(__name__)

# Seconds that workers have to answer, and to end their last step when the engine is closed.
ANSWER_TIMEOUT, CLOSE_TIMEOUT = 60.0, 5.0


class Profiling:
    """The profile of one engine. ENABLE_PROFILE=1 in the environment starts it with the first workers."""

    def __init__(self) -> None:
        self._workers: WorkerGroup | None = None
        self._options: ProfileOptions | None = None
        if os.environ.get("ENABLE_PROFILE", "0") not in ("", "0"):
            self._options = ProfileOptions()
        self._directory = Path()
        self._folders: list[Path] = []
        self.problems: list[str] = []  # why what was recorded last is not whole
        self._lock = asyncio.Lock()

    async def start(self, options: ProfileOptions, directory: Path = Path()) -> list[Path]:
        """Record from the next step on; returns the folders of the ranks. Raises RequestError."""
        # A caller who is cancelled must not leave half of the ranks recording.
        return await asyncio.shield(self._start(options, directory))

    async def stop(self) -> list[Path]:
        """Record no more; returns all folders. Raises RequestError if there is no profile."""
        return await asyncio.shield(self._stop())

    async def resume(self, workers: WorkerGroup | None) -> None:
        """Take new workers into a profile that is under way. Raises ConfigError if it cannot begin."""
        async with self._lock:
            self._workers = workers
            if self._options is None:
                return
            try:
                await self._begin(self._options)
            except RequestError as error:
                self._options = None
                if not self._folders:
                    raise ConfigError(f"{error}, as ENABLE_PROFILE=1 asks") from None
                log.error("the profile ends: %s", error)
                self.problems.append(str(error))

    async def close(self) -> None:
        """End a profile that is under way, without waiting long."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.stop()
        except (RequestError, TimeoutError):
            pass  # there is none, or its worker hangs, and what it recorded is on disk already

    async def _start(self, options: ProfileOptions, directory: Path) -> list[Path]:
        async with self._lock:
            if self._options is not None:
                raise RequestError("a profile is being recorded already; stop it before another one is started")
            self._directory, self._folders, self.problems = directory, [], []
            await self._begin(options)
            self._options = options
            return list(self._folders)

    async def _stop(self) -> list[Path]:
        async with self._lock:
            if self._options is None:
                raise RequestError("no profile is being recorded; start one first")
            self._options = None
            for answer in await self._ask(StopProfile()):
                if answer.error:
                    log.warning("the profile is not whole: %s", answer.error)
                    self.problems.append(answer.error)
            log.info("the profile is in %s", _names(self._folders))
            return list(self._folders)

    async def _begin(self, options: ProfileOptions) -> None:
        directory = self._directory.absolute()
        answers = await self._ask(StartProfile(str(directory), next_index(directory), options))
        for answer in answers:
            if answer.error:
                await self._ask(StopProfile())
                raise RequestError(answer.error)
        folders = [Path(answer.folder) for answer in answers]
        self._folders += folders
        log.info("recording a profile in %s", _names(folders))

    async def _ask(self, message: StartProfile | StopProfile) -> list[Profiled]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await self._workers.ask(message) if self._workers else []
        except TimeoutError:
            raise RequestError(f"the workers did not answer within {ANSWER_TIMEOUT:g} s") from None


def _names(folders: list[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder, for the worker is lost"
