"""Runs the batches of a folder, beside other servers that may run others of them."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from msgspec import UNSET

from sophserve.api.batches.answer_types import BatchError, BatchErrors, File
from sophserve.api.batches.job import Job, Slots
from sophserve.api.batches.lines import LineError, count_lines
from sophserve.api.batches.outputs import Outputs
from sophserve.api.batches.shelf import lock
from sophserve.api.batches.store import BATCH_STORE, BatchStore, KeptBatch
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.access import ACCOUNTS
from sophserve.api.http.quota import Account
from sophserve.errors import SophserveError

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_LINES = 50_000
"""Of a batch, as OpenAI has it."""
# Batches that run at once; the others wait for one to end.
_MOST_BATCHES = 16
# Seconds between two looks at the folder, at a batch that runs, and at a batch that cannot be run.
_FOLDER_PERIOD, _BATCH_PERIOD, _RETRY_PERIOD = 2.0, 0.5, 30.0
_SWEEP_PERIOD = 600.0

_CANCELLED = LineError("batch_cancelled", "the batch was cancelled before this request was done")
_EXPIRED = LineError("batch_expired", "This request could not be executed before the completion window expired.")
_GONE = BatchError(code="input_gone", message="what the server kept of the batch is gone; send it again")
_ENDINGS = {_CANCELLED: "cancelled", _EXPIRED: "expired"}


class Runner:
    """Sees to all batches that this server may run."""

    def __init__(self, app: web.Application) -> None:
        self.app = app
        self.store = app[BATCH_STORE]
        served = app[SERVED_MODEL]
        self.slots = Slots(served.config.batch_lines or max(1, served.engine.config.max_num_seqs // 2))
        self._models = served.model_names
        self._accounts = {account.key.digest.hex()[:16]: account for account in app[ACCOUNTS]}
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._next_sweep = 0.0
        self._done: set[str] = set()  # and those that this server may not run

    def wake(self) -> None:
        """There is a new batch, or one to be cancelled."""
        self._wake.set()

    async def run(self) -> None:
        """For as long as the server takes requests. Cancelling it leaves the batches to the next server."""
        try:
            while True:
                try:
                    await self._look()
                except OSError as error:
                    log.warning("cannot look through %s: %s", self.store.root, error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FOLDER_PERIOD):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _look(self) -> None:
        """Begin what can be, and clean up from time to time."""
        if time.monotonic() > self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_PERIOD
            await asyncio.to_thread(self.store.sweep)
        for kept in await asyncio.to_thread(self._ready):
            if kept.id not in self._running and len(self._running) < _MOST_BATCHES:
                task = asyncio.create_task(self._run(kept.id, self._accounts.get(kept.owner)))
                self._running[kept.id] = task

    def _ready(self) -> list[KeptBatch]:
        """Those that are not done, and whose model and API key this server has, oldest first."""
        now, found = time.monotonic(), []
        for identity in self.store.batches.ids():
            if identity in self._done or self._not_before.get(identity, 0.0) > now:
                continue
            kept = self.store.batches.find(identity)
            if kept is None:  # it cannot be read now
                self._not_before[identity] = now + _RETRY_PERIOD
            elif kept.done or not self._may_run(kept):
                self._done.add(identity)
            else:
                found.append(kept)
        return found

    def _may_run(self, kept: KeptBatch) -> bool:
        return kept.batch.model in self._models and (
            kept.owner == "" or kept.owner in self._accounts or not self._accounts
        )

    async def _run(self, identity: str, account: Account | None) -> None:
        held, gone = None, False
        try:
            try:
                held = await _locked(self.store.work(identity) / "lock")
            except FileNotFoundError:
                gone = True
            if (held is not None or gone) and (kept := await asyncio.to_thread(self.store.batches.find, identity)):
                run = _Run(self, kept, account)
                await (run.fail(_GONE) if gone else run.run())
        except (OSError, SophserveError) as error:
            log.error("batch %s cannot go on, and is tried again in %g s: %s", identity, _RETRY_PERIOD, error)
            self._not_before[identity] = time.monotonic() + _RETRY_PERIOD
        except Exception:
            log.exception("batch %s cannot go on, and is tried again in %g s", identity, _RETRY_PERIOD)
            self._not_before[identity] = time.monotonic() + _RETRY_PERIOD
        finally:
            self._running.pop(identity, None)
            if held is not None:  # else another server has it
                os.close(held)
                self.wake()


RUNNER = web.AppKey("batch_runner", Runner)


class _Run:
    """One batch, from wherever it stands."""

    def __init__(self, runner: Runner, kept: KeptBatch, account: Account | None) -> None:
        self._runner = runner
        self._store: BatchStore = runner.store
        self._kept = kept
        self._batch = kept.batch
        self._account = account
        self._folder = runner.store.work(kept.id)

    async def run(self) -> None:
        """To its end. Raises OSError, ConfigError."""
        if self._kept.done:
            return
        batch = self._batch
        if self._kept.ending is None:
            if batch.status == "validating" and not await self._validate():
                return
            log.info("batch %s: %d lines for %s", batch.id, batch.request_counts.total, batch.endpoint)
            await self._answer()
        await _in_thread(self._publish)
        counts = batch.request_counts
        found = counts.completed, counts.failed
        log.info("batch %s is %s: %d lines answered, %d failed", batch.id, batch.status, *found)

    async def fail(self, problem: BatchError) -> None:
        """End it, unless another server has. Raises OSError."""
        if not self._kept.done:
            batch = self._batch
            batch.status, batch.failed_at, batch.errors = "failed", _now(), BatchErrors(data=[problem])
            await self._save()
            await _in_thread(self._tidy)

    async def _validate(self) -> bool:
        """See that there is something to run; else the batch has failed."""
        batch = self._batch
        count = await _in_thread(lambda: count_lines(self._folder / "input.jsonl"))
        problem = None
        if not count:
            problem = BatchError(code="empty_file", message="the file has no lines; give each request one")
        elif count > MOST_LINES:
            message = f"the file has {count} lines; a batch has at most {MOST_LINES}, so split it"
            problem = BatchError(code="too_many_lines", message=message)
        if problem:
            await self.fail(problem)
            return False
        batch.request_counts.total = count
        batch.status, batch.in_progress_at = "in_progress", _now()
        await self._save()
        return True

    async def _answer(self) -> None:
        """Answer all lines, or fail them."""
        batch, folder = self._batch, self._folder
        outputs = await _in_thread(lambda: Outputs(folder / "output.jsonl", folder / "errors.jsonl"))
        try:
            tag = f"batch_req_{batch.id.removeprefix('batch_')}"
            runner = self._runner
            job = Job(runner.app, folder / "input.jsonl", outputs, tag, [batch.endpoint], runner.slots, self._account)
            await self._look(job, outputs)
            looking = asyncio.create_task(self._keep_looking(job, outputs))
            try:
                await job.run()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            await _in_thread(outputs.flush)
            self._count(outputs)
        finally:
            await _in_thread(outputs.close)
        self._kept.ending = _ENDINGS[job.stopped] if job.stopped else "completed"
        if not job.stopped:
            batch.status, batch.finalizing_at = "finalizing", _now()
        await self._save()

    async def _keep_looking(self, job: Job, outputs: Outputs) -> None:
        while True:
            await asyncio.sleep(_BATCH_PERIOD)
            try:
                await self._look(job, outputs)
            except OSError as error:
                log.warning("cannot write how far batch %s is: %s", self._batch.id, error)

    async def _look(self, job: Job, outputs: Outputs) -> None:
        """Stop the job where it is to be stopped, and tell others how far it is."""
        batch = self._batch
        if batch.status != "cancelling" and (since := self._store.cancelled_at(batch.id)) is not None:
            batch.status, batch.cancelling_at = "cancelling", since
            job.stop(_CANCELLED)
        elif batch.status == "cancelling":  # before the server was started
            job.stop(_CANCELLED)
        elif time.time() > batch.expires_at:
            job.stop(_EXPIRED)
        before = batch.request_counts.completed, batch.request_counts.failed
        if self._count(outputs) != before or job.stopped:
            await self._save()

    def _count(self, outputs: Outputs) -> tuple[int, int]:
        counts = self._batch.request_counts
        counts.completed, counts.failed = outputs.completed, outputs.failed
        self._batch.usage = outputs.usage
        return counts.completed, counts.failed

    def _publish(self) -> None:
        """Make files of the outputs, and let the batch end. May be repeated where it was cut short."""
        kept, batch = self._kept, self._batch
        assert kept.ending is not None
        batch.output_file_id = self._add_file("output.jsonl", kept.output_id, "output") or UNSET
        batch.error_file_id = self._add_file("errors.jsonl", kept.error_id, "error") or UNSET
        batch.status = kept.ending  # type: ignore[assignment]
        setattr(batch, f"{kept.ending}_at", _now())
        self._store.batches.put(kept)
        self._tidy()

    def _add_file(self, name: str, identity: str, what: str) -> str | None:
        """The id of an output that is a file now; None for one without lines."""
        path, content = self._folder / name, self._store.content(identity)
        found = next((each for each in (path, content) if each.exists()), None)
        if found is None or not (size := found.stat().st_size):
            return None
        now, seconds = _now(), self._kept.output_seconds
        file = File(
            id=identity,
            bytes=size,
            created_at=now,
            filename=f"{self._batch.id}_{what}.jsonl",
            purpose="batch_output",
            expires_at=UNSET if seconds is None else now + seconds,
        )
        self._store.add(path, file, self._kept.owner)
        return identity

    def _tidy(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _save(self) -> None:
        await _in_thread(lambda: self._store.batches.put(self._kept))


async def _in_thread(work: Callable[[], T]) -> T:
    """Done to its end even if this is cancelled, for a lock must be held until then."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _locked(path: Path) -> int | None:
    """As lock; nobody who is cancelled has it."""
    taken: list[int | None] = []
    try:
        await _in_thread(lambda: taken.append(lock(path)))
    except asyncio.CancelledError:
        if taken and taken[0] is not None:
            os.close(taken[0])
        raise
    return taken[0]


def _now() -> int:
    return int(time.time())
