"""What the worker keeps of each request, and the flat token batch that a step plan makes of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from device.interface import AttentionMeta
from sophserve.worker.messages import AddedRequest, Pooling, StepPlan
from sophserve.worker.penalties import PenaltyState

if TYPE_CHECKING:
    from sophserve.engine.grammar import AnswerGrammar


class Pooler:
    """Makes one vector of a prompt's hidden states, chunk by chunk."""

    def __init__(self, pooling: Pooling) -> None:
        self._last_only = pooling == "last"
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, hidden: Tensor) -> None:
        """Take the next rows, `[tokens, hidden]`."""
        if self._last_only:
            self._sum, self._count = hidden[-1].to("cpu", torch.float64), 1
            return
        # In double precision the result does not depend on where the prompt was cut; devices may lack it.
        rows = hidden.to("cpu", torch.float64).sum(0)
        self._sum = rows if self._sum is None else self._sum + rows
        self._count += len(hidden)

    def result(self) -> bytes:
        """float32 little-endian."""
        assert self._sum is not None
        return array("f", (self._sum / self._count).tolist()).tobytes()


class RequestState:
    """A request on the worker: its tokens, how many of them are in the KV cache, and its row of the block tables."""

    def __init__(self, added: AddedRequest, row: int) -> None:
        self.id = added.id
        self.params = added.params
        self.seed = added.seed
        self.end_token_ids = added.end_token_ids
        self.bad_word_ids = added.bad_word_ids
        self.prompt_length = added.prompt_length
        self.tokens = array("i", added.token_ids)
        self.computed = added.computed
        self.pooler = Pooler(added.pooling) if added.pooling else None
        self.row = row
        self.num_blocks = 0
        self.grammar: AnswerGrammar | None = None
        self.penalties = PenaltyState(self.tokens, self.prompt_length) if PenaltyState.needed(self.params) else None

    @property
    def output_length(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    def banned_token_ids(self) -> list[int]:
        """Tokens that may not be chosen next: those that would end too early or complete a bad word."""
        banned = list(self.end_token_ids) if self.output_length < self.params.min_tokens else []
        if self.params.ignore_eos and self.params.structured:
            banned += [token for token in self.end_token_ids if token not in self.params.stop_token_ids]
        for *beginning, last in self.bad_word_ids:
            start = len(self.tokens) - len(beginning)
            if start >= self.prompt_length and self.tokens[start:].tolist() == beginning:
                banned.append(last)
        return banned

    def append(self, token_id: int) -> None:
        """Take a sampled token."""
        self.tokens.append(token_id)
        if self.penalties:
            self.penalties.add_output(token_id)


@dataclass(frozen=True)
class PromptChunk:
    """Rows of a batch whose logits are asked for as prompt logprobs: those from `first_row` on give the targets, which
    stand from position `start` on."""

    state: RequestState
    first_row: int
    start: int
    targets: list[int]


@dataclass(frozen=True)
class PooledChunk:
    """Rows of a batch that are to be pooled, the last ones of their prompt if `complete`."""

    state: RequestState
    rows: slice
    complete: bool


@dataclass(frozen=True)
class FlatBatch:
    """token_ids: int64 `[tokens]`. sampled: the requests that get a token, from the rows in sample_rows, int64."""

    token_ids: Tensor
    meta: AttentionMeta
    sampled: list[RequestState]
    sample_rows: Tensor
    prompt_chunks: list[PromptChunk]
    pooled_chunks: list[PooledChunk]


class BatchBuilder:
    """Holds the request states and turns each step plan into a flat batch."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.states: dict[int, RequestState] = {}
        self._free_rows = list(range(max_num_seqs))
        max_blocks = -(-max_model_len // block_size)
        self._block_tables = torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32)

    def build(self, plan: StepPlan) -> FlatBatch:
        """Apply the plan to the states and lay out its tokens."""
        for identity in plan.dropped:
            if state := self.states.pop(identity, None):
                self._free_rows.append(state.row)
        for added in plan.added:
            self.states[added.id] = RequestState(added, self._free_rows.pop())
        token_ids: list[int] = []
        rows, input_lengths, cached_lengths, sampled, sample_rows = [], [], [], [], []
        chunks, pooled = [], []
        for scheduled in plan.scheduled:
            state = self.states[scheduled.id]
            start, end = state.computed, state.computed + scheduled.count
            self._append_blocks(state, scheduled.new_blocks)
            chunk = _prompt_chunk(state, len(token_ids), start, end)
            if chunk:
                chunks.append(chunk)
            first_row = len(token_ids)
            token_ids.extend(state.tokens[start:end])
            rows.append(state.row)
            input_lengths.append(scheduled.count)
            cached_lengths.append(start)
            state.computed = end
            if state.pooler:
                pooled.append(PooledChunk(state, slice(first_row, len(token_ids)), end == len(state.tokens)))
            elif end == len(state.tokens):
                sampled.append(state)
                sample_rows.append(len(token_ids) - 1)
        meta = self._meta(rows, input_lengths, cached_lengths)
        rows_to_sample = torch.tensor(sample_rows, dtype=torch.int64)
        return FlatBatch(torch.tensor(token_ids), meta, sampled, rows_to_sample, chunks, pooled)

    def _append_blocks(self, state: RequestState, blocks: list[int]) -> None:
        if blocks:
            end = state.num_blocks + len(blocks)
            self._block_tables[state.row, state.num_blocks : end] = torch.tensor(blocks, dtype=torch.int32)
            state.num_blocks = end

    def _meta(self, rows: list[int], input_lengths: list[int], cached_lengths: list[int]) -> AttentionMeta:
        lengths = torch.tensor(input_lengths, dtype=torch.int32)
        cached = torch.tensor(cached_lengths, dtype=torch.int32)
        longest = int((lengths + cached).max())
        tables = self._block_tables[torch.tensor(rows), : -(-longest // self.block_size)]
        # Not repeat_interleave, which wakes torch's threads for however few tokens: they would spin beside ours.
        ends = lengths.cumsum(0)
        tokens = torch.arange(int(ends[-1]))
        sequences = torch.searchsorted(ends, tokens, right=True)
        positions = tokens + (cached - ends + lengths)[sequences]
        blocks = tables[sequences, positions // self.block_size]
        slots = blocks * self.block_size + (positions % self.block_size).int()
        return AttentionMeta(lengths, cached, tables, slots, longest)


def _prompt_chunk(state: RequestState, first_row: int, start: int, end: int) -> PromptChunk | None:
    """The logits at position p tell the token at p + 1; the prompt's first token has none."""
    if state.params.prompt_logprobs is None:
        return None
    targets = state.tokens[start + 1 : min(end + 1, state.prompt_length)].tolist()
    return PromptChunk(state, first_row, start + 1, targets) if targets else None
