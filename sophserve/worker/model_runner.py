"""Loads the model onto a device and runs step plans on it."""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import accumulate, chain, takewhile
from pathlib import Path

import torch

from device.collectives.interface import Hosts
from device.interface import GivenEmbeddings, OutOfDeviceMemory, StepInputs
from sophserve.checkpoint import read_config
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError
from sophserve.fit import check_kv_room, check_stages, device_index, resolve_max_model_len
from sophserve.grammar.follow import GrammarMasks
from sophserve.link.messages import (
    Embedding,
    LoadModel,
    ModelInfo,
    Progress,
    PromptLogprobs,
    SampledTokens,
    StepPlan,
    StepResult,
)
from sophserve.measure.footprint import FootprintRequest
from sophserve.model.config import resolve_dtype
from sophserve.model.context import ModelContext, resolve_activation_bits
from sophserve.model.decoder import CausalLM
from sophserve.model.devices import open_device
from sophserve.model.eagle3 import Eagle3
from sophserve.model.kv_memory import KV_SHARE, block_count, cached_layers, token_bytes
from sophserve.model.loading import find_architecture, load_model
from sophserve.model.vision import VisionLanguageModel
from sophserve.sampling import StructuredOutput
from sophserve.table import size
from sophserve.worker.batch import BatchBuilder, FlatBatch, ImageRows, PooledChunk, RequestState, Sampled
from sophserve.worker.captured_decode import CapturedDecode
from sophserve.worker.draft_model import DraftModel
from sophserve.worker.eagle3 import Eagle3Drafter
from sophserve.worker.encoder import ImageEncoder, encoder_info
from sophserve.worker.mtp import MtpDrafter
from sophserve.worker.sampler import DEFERRED, joined, prompt_logprobs, rows_of, sample_params, sampled_tokens
from sophserve.worker.smaller_model import load_smaller
from sophserve.worker.speculation import Speculation
from sophserve.worker.stages import Stages
from sophserve.worker.unread import Unread, note, told

log = logging.getLogger(__name__)

# Rows of logits held at once for prompt logprobs: a row is as long as the vocabulary.
LOGITS_ROWS = 128
# The multiplications that take as long as finding one logit's place among the logprobs.
SEARCH_COST = 100
# So that a prompt of any model gets on.
MOST_COST = 64.0


class ModelRunner:
    """One rank's model on one device."""

    def __init__(
        self,
        load: LoadModel,
        collectives: Sequence[int],
        beat: Callable[[], None],
        on_progress: Callable[[Progress], None],
        hosts: Mapping[int, Hosts] | None = None,
    ) -> None:
        config, directory = load.config, Path(load.directory)
        self.device = open_device(config.device, load.local_rank)
        self.device_index = device_index(load.local_rank)
        self.stages = Stages(load, self.device, collectives, hosts)
        log.info("device: %s", self.device.describe())
        self._smaller: CausalLM | None = None
        self._load_models(load, beat, on_progress)
        max_model_len = self.model.context.max_positions
        on_progress(Progress("allocating the KV cache"))
        self._sharing = len(load.ranks_here) if self.device.uses_host_memory else 1
        num_blocks, cache_bytes = self._make_kv_caches(load, max_model_len)
        free_memory, total_memory = self.device.memory()
        self.info = ModelInfo(
            max_model_len=max_model_len,
            vocab_size=self.model.vocab_size,
            dtype=str(self.model.context.dtype).removeprefix("torch."),
            device=self.device.describe(),
            block_size=config.block_size,
            num_blocks=num_blocks,
            kv_cache_bytes=cache_bytes,
            weight_bytes=sum(model.nbytes for model in self._models),
            free_memory=free_memory,
            total_memory=total_memory,
            prompt_logprobs_cost=prompt_logprobs_cost(self.model) if self.model.is_last else 1.0,
            generates=self.model.generates,
            activation_bits=_bits_of_activations(config, self.model),
        )
        self._images, axis_positions = None, None
        if isinstance(self.model, VisionLanguageModel):
            self.info.encoder = encoder_info(self.model, config)
            self._images, axis_positions = ImageEncoder(self.model, beat), self.model.axis_positions
        self._grammars = GrammarMasks(directory, self.model.vocab_size) if self.stages.answers else None
        self._unread = None if self.model.is_last else Unread(self.stages)
        self._batches = BatchBuilder(config.block_size, self.model.vocab_size, axis_positions)
        self._captured: CapturedDecode | None = None
        self._speculation: Speculation | None = None
        self._prepare_decoding(config, max_model_len, on_progress)
        # From here on the device's threads compute; torch's, which watch for more work for milliseconds, would take the
        # cores from them.
        torch.set_num_threads(1)

    def _load_models(self, load: LoadModel, beat: Callable[[], None], on_progress: Callable[[Progress], None]) -> None:
        """The one that is served, and on the rank that answers one that guesses."""
        config, directory = load.config, Path(load.directory)
        model_class = find_architecture(model_config := read_config(directory))
        _check_ranks(load, sees=issubclass(model_class, VisionLanguageModel))
        max_model_len = resolve_max_model_len(config, model_class.max_model_len(model_config))
        dtype = resolve_dtype(model_config, config.dtype)
        bits = resolve_activation_bits(config.activation_bits, dtype, self.device)
        layers = stage_layers(directory, config)[self.stages.number]
        how = beat, bits, config.head_bits, config.drafting.mtp, layers
        context = ModelContext(self.device, self.stages.ranks, dtype, max_model_len, *how)
        on_progress(Progress("loading weights"))
        self.model = load_model(
            directory,
            context,
            lambda done, total: on_progress(Progress("loading weights", done, total)),
            model_class=model_class,
            quantization=config.quantization,
            cache_dir=config.reorder_cache_dir,
            needs_mtp=config.drafting.needs_mtp,
        )
        if config.drafting.model and self.stages.answers:
            self._smaller = load_smaller(config, config.drafting.model, directory, self.model, on_progress)

    def _prepare_decoding(
        self, config: EngineConfig, max_model_len: int, on_progress: Callable[[Progress], None]
    ) -> None:
        """Record a step, and get ready to guess."""
        self._mtp: MtpDrafter | None = MtpDrafter(self.model) if self.model.mtp else None
        head = self._smaller if isinstance(self._smaller, Eagle3) else None
        recorded = [self.model] if head else self._models
        self._predicting, self._ended = True, time.perf_counter()
        drafts = config.drafting.tokens
        max_rows = min(config.max_num_batched_tokens, max(config.max_num_seqs, 1 + drafts))
        captured: list[CapturedDecode] = []
        if not config.enforce_eager and os.environ.get("DISABLE_CACHE", "0") in ("", "0"):
            on_progress(Progress("recording a decode step"))
            max_blocks = -(-max_model_len // config.block_size)
            captured = [CapturedDecode(self.device, model, max_rows, max_blocks) for model in recorded]
            self._captured = captured[0]
        if drafts and self.stages.answers:
            drafter: DraftModel | Eagle3Drafter | None = None
            if head:
                drafter = self._mtp = Eagle3Drafter(head, config.block_size)
            elif self._smaller:
                sizes = config.block_size, self.model.vocab_size
                drafter = DraftModel(self._smaller, *sizes, captured[-1] if captured else None)
            self._speculation = Speculation(config, max_rows, self._grammars, drafter)

    @property
    def _models(self) -> list[CausalLM]:
        """Those of this rank, the one that is served first."""
        return [self.model] if self._smaller is None else [self.model, self._smaller]

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        waited = time.perf_counter() - self._ended
        if self._unread:
            self._unread.catch_up(plan)
        if self._images:
            self._images.run(plan.encoded, plan.forgotten)
        dropped = self._batches.take_in(plan)
        drafts = self._drafts(plan, dropped)
        begin, recordings = time.perf_counter(), self._captured and self._captured.recordings
        batch = self._batches.build(plan, drafts)
        requests = batch.sampled + [Sampled(state) for state in batch.held]
        masks = self._grammars.begin(requests) if self._grammars else {}
        prompts, embeddings = [], []
        hidden, made, logits = self._compute(batch)
        if hidden is not None:
            prompts = self._prompt_logprobs(hidden, batch)
            embeddings = self._pooled(hidden, batch.pooled_chunks)
        sampled: list[SampledTokens] = []
        if requests and self._unread:
            self._unread.add(plan.step, requests)
        elif requests:
            sampled = self._sample(logits, requests, masks)
        between = time.perf_counter()
        predicted = bool(self._mtp and made and self._mtp.run(batch, made, guessing=self._predicting))
        usual = not prompts and not batch.images and all(each.tokens for each in sampled)
        if self._speculation and usual and recordings == (self._captured and self._captured.recordings):
            predicting = time.perf_counter() - between if predicted else None
            self._speculation.learn(plan, len(batch.inputs.ids), between - begin, waited, predicting)
        self._ended = time.perf_counter()
        return StepResult(plan.step, sampled, prompts, embeddings)

    def _compute(self, batch: FlatBatch) -> tuple[torch.Tensor | None, list[torch.Tensor], torch.Tensor | None]:
        """Hidden states of a batch, unless only their logits are needed, what goes through a layer for further tokens,
        and logits of the rows that are sampled. Of a stage that is not the last one nothing: what it computed is passed
        on."""
        rows = len(batch.inputs.ids)
        if not rows:
            return None, [], None
        passed = self.stages.receive(rows, self.model.config.hidden_size, self.model.context.dtype)
        if not self.model.is_last:
            computed = self._captured.advance(batch, passed) if self._captured else None
            self.stages.send(computed or self.model.advance(self._inputs(batch), passed))
            return None, [], None
        recorded = self._captured.run(batch, passed) if self._captured else None
        if recorded is not None and self._captured:
            if self.model.mtp:
                return recorded, [recorded], self.model.logits(recorded)
            return None, [each[:rows] for each in self._captured.handed], recorded
        inputs = self._inputs(batch)
        # Models of plugins may have a __call__ of their own that knows nothing of stages.
        hidden = self.model(inputs) if passed is None else self.model(inputs, passed)
        logits = self.model.logits(hidden[batch.sample_rows]) if batch.sampled else None
        return hidden, self.model.handed or [hidden], logits

    def _inputs(self, batch: FlatBatch) -> StepInputs:
        inputs = replace(batch.inputs, given=self._given(batch.images))
        return self.device.prepare(inputs, self.model.ropes)

    def _drafts(self, plan: StepPlan, dropped: list[RequestState]) -> Mapping[int, Sequence[int]]:
        """What is guessed to follow the last tokens of requests, by id. The rank that answers guesses; it also says
        whether the layer for further tokens goes on."""
        drafts: Mapping[int, Sequence[int]] = {}
        if self._speculation:
            self._speculation.forget(dropped)
            drafts = self._speculation.propose(plan, self._batches.states)
            self._predicting = self._speculation.predicting
        wanted = [entry for entry in plan.scheduled if entry.drafts] if self.stages.everyone.world_size > 1 else []
        if not wanted:
            return drafts
        most = max(entry.drafts for entry in wanted)
        rows = [[*drafts.get(entry.id, ()), *[DEFERRED] * most][:most] for entry in wanted]
        *shared, said = self.stages.tell(torch.tensor([*rows, [int(self._predicting)] * most])).tolist()
        self._predicting = bool(said[0])
        each = [list(takewhile(lambda token_id: token_id != DEFERRED, row)) for row in shared]
        return {entry.id: row for entry, row in zip(wanted, each, strict=True) if row}

    def _given(self, images: list[ImageRows]) -> GivenEmbeddings | None:
        """What images stand for in a batch."""
        if not images or self._images is None:
            return None
        rows = [torch.arange(each.first_row, each.first_row + each.end - each.first) for each in images]
        values = [self._images.rows(each.digest)[each.first : each.end] for each in images]
        return GivenEmbeddings(torch.cat(rows), torch.cat(values))

    def compile_grammar(self, structured: StructuredOutput) -> None:
        """Begin to compile what a request that is on its way will need."""
        if self._grammars:
            self._grammars.compile_ahead(structured)

    def _sample(
        self, logits: torch.Tensor | None, requests: list[Sampled], masks: dict[int, Future[list[bytes]]]
    ) -> list[SampledTokens]:
        """One rank chooses the tokens; the others only take note of them. logits: of the states that hold none."""
        first = list(accumulate((1 + len(drafts) for _, drafts in requests), initial=0))
        token_ids = torch.full((first[-1],), DEFERRED, dtype=torch.int64)
        by_row: dict[int, SampledTokens] = {}
        if self._grammars:
            held = [state.held for state, _ in requests if state.held is not None]
            given = [] if logits is None else [logits]
            logits = torch.cat([*given, torch.stack(held)]) if held else given[0]
            found = self._grammars.collect(requests, masks)
            known = [place for place in range(len(requests)) if place in found or place not in masks]
            rows = [
                (index, row)
                for place in known
                for index, row in enumerate(rows_of(requests[place], found.get(place)), first[place])
            ]
            if rows:
                ready, chosen = [index for index, _ in rows], [row for _, row in rows]
                params = sample_params(chosen, logits.shape[-1])
                result = self.device.ops.sample(logits if len(ready) == first[-1] else logits[ready], params)
                token_ids[ready] = result.token_ids.cpu()
                by_row = dict(zip(ready, sampled_tokens(result, chosen), strict=True))
        sampled = []
        for row, each, tokens in zip(first, requests, told(self.stages, requests, token_ids), strict=False):
            rows_of_it = [by_row[row + place] for place in range(len(tokens))] if by_row else []
            sampled.append(joined(each.state.id, rows_of_it))
            if tokens:
                sampled[-1].drafted = len(each.drafts)
            note(each, tokens, None if tokens or logits is None or not self._grammars else logits[row])
        return sampled

    def _prompt_logprobs(self, hidden: torch.Tensor, batch: FlatBatch) -> list[PromptLogprobs]:
        parts = []
        for chunk in batch.prompt_chunks:
            count = min(chunk.state.params.prompt_logprobs or 0, self.model.vocab_size)
            for offset in range(0, len(chunk.targets), LOGITS_ROWS):
                targets = chunk.targets[offset : offset + LOGITS_ROWS]
                first = chunk.first_row + offset
                logits = self.model.logits(hidden[first : first + len(targets)])
                if self.stages.answers:
                    entries = prompt_logprobs(self.device.ops, logits, targets, count)
                    parts.append(PromptLogprobs(chunk.state.id, chunk.start + offset, count, *entries))
        return parts

    def _pooled(self, hidden: torch.Tensor, chunks: list[PooledChunk]) -> list[Embedding]:
        """What has become of the prompts that are complete."""
        done, scored = [], []
        for state, rows, complete in ((chunk.state, chunk.rows, chunk.complete) for chunk in chunks):
            assert state.pooler is not None
            if state.pooler.token_ids:
                scored += [(state.id, state.pooler.token_ids, rows.stop - 1)] if complete else []
                continue
            state.pooler.add(hidden[rows])
            if complete:
                done.append(Embedding(state.id, state.pooler.result()))
        for start in range(0, len(scored), LOGITS_ROWS):
            ids, tokens, last = zip(*scored[start : start + LOGITS_ROWS], strict=True)
            logits = self.model.logits(hidden[torch.tensor(last)])
            for identity, token_ids, row in zip(ids, tokens, logits, strict=True):
                done.append(Embedding(identity, array("f", row[token_ids].tolist()).tobytes()))
        return done

    def _free_memory(self) -> int:
        """The part of the free memory that this rank's KV cache may take, once every rank has loaded its weights."""
        self.stages.everyone.all_gather(torch.zeros(1))
        return int(self.device.memory()[0] * KV_SHARE) // self._sharing

    def _make_kv_caches(self, load: LoadModel, max_model_len: int) -> tuple[int, int]:
        config = load.config
        block_bytes = sum(map(token_bytes, self._models)) * config.block_size
        num_blocks = load.num_blocks or self._num_blocks(config, max_model_len, block_bytes)
        try:
            for layer in chain.from_iterable(map(cached_layers, self._models)):
                layer.kv = self.device.make_kv_cache(num_blocks, config.block_size, layer.cache)
        except OutOfDeviceMemory as error:
            raise ConfigError(
                f"{size(num_blocks * block_bytes)} of KV cache do not fit in memory ({error}); lower --kv-cache-memory"
            ) from error
        return num_blocks, num_blocks * block_bytes

    def _num_blocks(self, config: EngineConfig, max_model_len: int, block_bytes: int) -> int:
        """As many as every rank has room for. Raises ConfigError if one sequence does not fit."""
        budget = config.kv_cache_bytes or self._free_memory()
        num_blocks = block_count(budget, block_bytes, config, max_model_len)
        num_blocks = int(self.stages.everyone.all_gather(torch.tensor([num_blocks])).min())
        check_kv_room(budget, block_bytes, num_blocks, config, max_model_len)
        return num_blocks


def _check_ranks(load: LoadModel, *, sees: bool) -> None:
    """Raise ConfigError for ranks that no model that sees can have."""
    if load.places and sees:
        raise ConfigError("models that see images run on one host only; start this one with the devices of one")
    check_stages(load.config, sees=sees)


def stage_layers(directory: Path, config: EngineConfig) -> list[range | None]:
    """The layers of each stage, found without the weights, by every rank alike; None for all."""
    if config.pipeline_parallel_size == 1:
        return [None]
    from sophserve.measure.footprint_process import Loader  # which others need not import

    loader = Loader(FootprintRequest(directory=str(directory), config=config))
    return [*loader.stages(config.tensor_parallel_size, config.pipeline_parallel_size)]


def prompt_logprobs_cost(model: CausalLM) -> float:
    """How many prompt tokens take as long as one whose logprobs are asked for: it goes through the head, too, and its
    logits are searched."""
    search = 2 * model.vocab_size * SEARCH_COST
    return min(MOST_COST, 1 + (model.head.token_flops + search) / max(2, model.token_flops))


def _bits_of_activations(config: EngineConfig, model: CausalLM) -> int:
    """8 where some meet weights in int8. What is asked for in vain is a warning."""
    if config.activation_bits == 8 and not model.rounds_rows:
        log.warning(
            "--activation-bits 8 changes nothing: only weights of whole numbers, in groups of a multiple of 32 inputs, "
            "take activations in int8, and this model has none"
        )
    return 8 if model.rounds_rows else 16
