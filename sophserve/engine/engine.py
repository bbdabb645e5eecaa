"""The engine: one task that plans steps, sends them to the worker and hands the results to the readers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from array import array
from collections.abc import AsyncGenerator, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sophserve.checkpoint import end_token_ids
from sophserve.config import EngineConfig
from sophserve.engine.block_pool import root_key
from sophserve.engine.kv_events import KvEvents
from sophserve.engine.output import OutputDelta
from sophserve.engine.profile_session import Profiling
from sophserve.engine.recovery import Recovery
from sophserve.engine.request import Item, Request
from sophserve.engine.request_checks import bad_word_ids, check_input, check_items, check_request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.engine.sequence import Sequence, Watcher
from sophserve.engine.supervisor import Supervisor
from sophserve.errors import EngineDeadError, RequestAborted, RequestError, SophserveError
from sophserve.grammar.check import GrammarCheck
from sophserve.link.hosts import Hosts
from sophserve.link.messages import CompileGrammar, ModelInfo, Pooling, StepPlan, StepResult
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sophserve.engine.kv_publisher import KvPublisher

log = logging.getLogger(__name__)

# While a step runs the next one waits at the worker already, so that the device never waits for us. Each further stage
# that computes has a further one.
PLANS_IN_FLIGHT = 2
_SEED_MASK = 2**63 - 1


class Engine:
    """Generates for many readers at once. `start_worker`, then `start`, then `generate`; `close` at the end."""

    def __init__(self, config: EngineConfig, directory: Path, hosts: Hosts | None = None) -> None:
        self.config = config
        self.directory = directory
        self.died = asyncio.Event()
        self._wake = asyncio.Event()
        self.workers = Supervisor(directory, config, self._on_result, self._wake.set, hosts)
        self._info: ModelInfo | None = None
        self._sequences: dict[int, Sequence] = {}
        self._ids = itertools.count()
        self._random = random.Random(config.seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._grammars: GrammarCheck | None = None
        self._publisher: KvPublisher | None = None
        self.profiling = Profiling()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and its workers alive."""
        return self.loaded and self.workers.lost is None

    @property
    def loaded(self) -> bool:
        """Whether requests are taken: they wait while workers that were lost are restarted."""
        return bool(self._tasks) and not self.died.is_set()

    @property
    def info(self) -> ModelInfo:
        """What the worker loaded. Only once ready."""
        assert self._info is not None, "the model is not loaded yet"
        return self._info

    def start_worker(self) -> None:
        """Start the worker processes, which takes seconds, and return at once. Needs no event loop."""
        self.workers.start()

    async def start(self, tokenizer: Tokenizer, model_name: str | None = None) -> None:
        """Wait until the model is loaded. Raises ConfigError with the worker's reason.

        model_name is the metrics' label; by default the model argument.
        """
        from sophserve.engine.metrics import EngineMetrics  # slow to import: not before the port is open

        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids(self.directory, tokenizer.eos_id)
        self._info = await self.workers.load()
        await self.profiling.resume(self.workers.group)
        self._grammars = GrammarCheck(self.directory, self._info.vocab_size, self._compile_ahead)
        limits = Limits(
            self.config.max_num_seqs,
            self.config.max_num_batched_tokens,
            self._info.block_size,
            self.config.enable_prefix_caching,
            self.config.enable_chunked_prefill,
            self._info.prompt_logprobs_cost,
            self._info.encoder,
            self.config.drafting.tokens,
            self.config.pipeline_parallel_size,
        )
        self._scheduler = Scheduler(limits, self._info.num_blocks, self._kv_events())
        self._recovery = Recovery(self._scheduler)
        self.metrics = EngineMetrics(self._scheduler, model_name or self.config.model, self._info.max_model_len)
        self._tasks = [asyncio.create_task(work) for work in (self._run(), self.workers.watch(), self.metrics.report())]
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)

    def _kv_events(self) -> KvEvents | None:
        """What publishes as the options say. Raises ConfigError."""
        if not self.config.kv_events.enabled:
            return None
        from sophserve.engine.kv_publisher import KvPublisher  # needs an extra

        self._publisher = KvPublisher(self.config.kv_events)
        return KvEvents(self._publisher.publish)

    async def close(self) -> None:
        """End every sequence as aborted and stop the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._end_all("abort")
        if self._grammars:
            await self._grammars.close()
        await self.profiling.close()
        await self.workers.close(kill=False)
        if self._publisher:
            await asyncio.to_thread(self._publisher.close)

    def check(self, prompt: list[int], params: SamplingParams, items: Collection[Item] = ()) -> None:
        """Raise RequestError for what could never be generated."""
        check_request(prompt, params, self.info, sum(item.length for item in items))
        check_items(items, self.info)

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str,
        index: int = 0,
        priority: int = 0,
        cache_salt: str = "",
        watcher: Watcher | None = None,
        background: bool = False,
        items: Iterable[Item] = (),
        owner: str = "",
    ) -> AsyncGenerator[OutputDelta, None]:
        """Generate one sequence; `index` keeps the seeds of several answers to one prompt apart.

        priority counts with the scheduling policy of that name: lower numbers go first. KV blocks are only shared
        between requests with the same cache_salt. watcher hears when the sequence begins and ends. One in the
        background gives way to all that are not, whatever the policy. items: the images of the prompt, in order. owner:
        who asks; what was said to others with another cache_salt is never a guess of what will be said.
        `check` the prompt first, once for all its answers. Closing the iterator aborts the request at once. Raises
        RequestError for a form that cannot be kept to, RequestAborted when it was cancelled or waited too long,
        EngineDeadError when the worker is lost.
        """
        self._check_running()
        await self.compile(params.structured)
        sequence = self._add(
            prompt, params, request_id, index, priority, cache_salt, background, items=items, owner=owner
        )
        sequence.watch(watcher)
        try:
            delta = OutputDelta()
            while delta.finish_reason is None:
                delta = await self._next_delta(sequence)
                yield delta
        finally:
            self._forget(sequence)

    async def compile(self, structured: StructuredOutput | None, owner: str = "") -> None:
        """Raise RequestError for a form of the answer that cannot be kept to; ServerBusy where that is not known yet
        and cannot be found out now. Owners do not wait for each other's."""
        if structured is not None:
            assert self._grammars is not None, "the model is not loaded yet"
            await self._grammars.check(structured, owner)

    def _compile_ahead(self, structured: StructuredOutput) -> None:
        if self.ready:
            self.workers.send(CompileGrammar(structured))

    async def embed(
        self,
        prompt: list[int],
        pooling: Pooling,
        request_id: str,
        index: int = 0,
        priority: int = 0,
        background: bool = False,
    ) -> array[float]:
        """The prompt's final hidden states, pooled, or logits of the next token. Cancelling aborts the request; raises
        as generate does."""
        self._check_running()
        check_input(prompt, self.info)
        params = SamplingParams(max_tokens=1)
        sequence = self._add(prompt, params, request_id, index, priority, "", background, pooling)
        try:
            delta = await self._next_delta(sequence)
        finally:
            self._forget(sequence)
        if delta.finish_reason == "abort":
            raise EngineDeadError("the engine was closed")
        return array("f", sequence.embedding)

    def _check_running(self) -> None:
        if not self.loaded:
            raise EngineDeadError("the engine is not running")

    @property
    def sequences(self) -> list[Sequence]:
        """Those that wait or run."""
        return list(self._sequences.values())

    def abort(self, sequence: Sequence, cause: RequestAborted) -> None:
        """End a sequence; its reader gets the cause."""
        sequence.cause = cause
        sequence.end("abort")
        self._forget(sequence)

    def reset_prefix_cache(self) -> None:
        """Forget what the KV blocks of finished requests hold."""
        self._scheduler.forget_prefixes()
        self._wake.set()

    async def _next_delta(self, sequence: Sequence) -> OutputDelta:
        delta = await sequence.stream.get()
        if error := delta.error or sequence.cause:
            raise error
        return delta

    def _add(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str,
        index: int,
        priority: int,
        cache_salt: str,
        background: bool,
        pooling: Pooling | None = None,
        items: Iterable[Item] = (),
        owner: str = "",
    ) -> Sequence:
        self._check_running()  # again: it may have ended while the caller waited for something else
        room = max(1, self.info.max_model_len - len(prompt))
        seed = params.seed if params.seed is not None else self._random.getrandbits(63)
        request = Request(
            id=next(self._ids),
            prompt=prompt,
            params=params,
            seed=(seed + index * 0x9E3779B97F4A7C15) & _SEED_MASK,
            # The step that ends a prompt gives a token, even if none is wanted.
            max_tokens=room if params.max_tokens is None else max(1, min(room, params.max_tokens)),
            root_key=root_key(cache_salt),
            pooling=pooling,
            items=list(items),
            owner=root_key(cache_salt) + owner.encode(),
            prediction=params.prediction,
            priority=priority if self.config.scheduling_policy == "priority" else 0,
            background=background,
            bad_word_ids=bad_word_ids(self._tokenizer, params.bad_words),
            end_token_ids=params.stop_token_ids
            + ([] if params.ignore_eos and not params.structured else self._end_token_ids),
        )
        sequence = Sequence(request, self._tokenizer, request_id, index)
        log.debug("request %s/%d is sequence %d", request_id, index, request.id)
        self._sequences[request.id] = sequence
        self._scheduler.add(request)
        self._wake.set()
        if self.config.max_queue_time is not None and not background:
            asyncio.get_running_loop().call_later(self.config.max_queue_time, self._end_wait, request.id)
        return sequence

    def _end_wait(self, request: int) -> None:
        """The time that a request may wait is over."""
        sequence = self._sequences.get(request)
        if sequence and not sequence.timeline.scheduled:
            message = "the request waited for as long as --max-queue-time allows; try again later"
            self.abort(sequence, RequestAborted(message, "queue_timeout"))

    def _forget(self, sequence: Sequence) -> None:
        request = sequence.request
        if self._sequences.pop(request.id, None):
            self._scheduler.finish(request)
            lengths = len(request.output), request.max_tokens
            self.metrics.on_finish(sequence.timeline, sequence.finish_reason or "abort", *lengths)
            sequence.leave()
            self._wake.set()

    async def _run(self) -> None:
        most = PLANS_IN_FLIGHT + self.config.pipeline_parallel_size - 1
        while True:
            if self.workers.lost:
                await self._restart()
            while self.workers.in_flight < most and (plan := self._recovery.schedule()):
                self.workers.send(plan)
                self._note_step(plan)
            self._check_blocks()
            if self._scheduler.events:
                self._scheduler.events.flush()
            await self._wake.wait()
            self._wake.clear()

    def _check_blocks(self) -> None:
        """Whoever does not run owns no blocks. Should any be owned then, by a fault of ours, they are not lost for
        ever."""
        scheduler = self._scheduler
        if not scheduler.running and not scheduler.pool.idle:
            log.error("KV blocks have owners although nothing runs (%d of them); all are freed", scheduler.pool.used)
            scheduler.lose_blocks()

    def _note_step(self, plan: StepPlan) -> None:
        self.metrics.on_step(sum(entry.count for entry in plan.scheduled))
        for added in plan.added:
            timeline = self._sequences[added.id].timeline
            timeline.scheduled = timeline.scheduled or time.monotonic()

    async def _restart(self) -> None:
        """Have new workers, and queue again what the lost ones ran: requests go on where they are."""
        log.error("%s; restarting, %d requests go on where they are", self.workers.lost, len(self._sequences))
        await self.workers.close(kill=True)  # so that no result of theirs comes after this
        for request in self._recovery.restart():
            sequence = self._sequences[request.id]
            error = "the worker was lost twice while it ran this request, which is given up"
            sequence.end("error", EngineDeadError(error))
            self._forget(sequence)
        try:
            self._info = await self.workers.restart()
        finally:
            self.metrics.counts.restarts = self.workers.restarts
        await self.profiling.resume(self.workers.group)

    def _on_result(self, result: StepResult) -> None:
        self._wake.set()
        self._recovery.update({sampled.id: sampled.tokens for sampled in result.sampled})
        for part in result.prompt_logprobs:
            if sequence := self._sequences.get(part.id):
                sequence.add_prompt_logprobs(part)
        for embedding in result.embeddings:
            if sequence := self._sequences.get(embedding.id):
                sequence.embedding = embedding.values
                sequence.end("stop")
                self.metrics.on_prompt(sequence.timeline, len(sequence.request.prompt), sequence.request.cached_tokens)
                self._forget(sequence)
        for sampled in result.sampled:
            # A sequence that ended while this step was under way has no use for the tokens.
            sequence = self._sequences.get(sampled.id)
            if sequence and sampled.error:
                sequence.end("error", RequestError(sampled.error))
                self._forget(sequence)
            elif sequence and sampled.tokens:
                self.metrics.on_drafts(sampled.drafted, len(sampled.tokens) - 1)
                count, request = sequence.add_tokens(sampled), sequence.request
                self.metrics.on_tokens(sequence.timeline, count, len(request.prompt), request.cached_tokens)
                if sequence.finished:
                    self._forget(sequence)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            if not isinstance(error, SophserveError):
                log.error("the engine failed", exc_info=error)
            log.error("the engine ends: %s", error)
            self.died.set()
            self._end_all("error", EngineDeadError(str(error)))

    def _end_all(self, reason: Literal["abort", "error"], error: EngineDeadError | None = None) -> None:
        for sequence in list(self._sequences.values()):
            sequence.end(reason, error)
            self._forget(sequence)
