"""What the worker keeps of each request, and the flat token batch that a step plan makes of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from device.interface import StepInputs
from sophserve.link.messages import AddedRequest, Pooling, StepPlan
from sophserve.worker.arrays import as_tensor
from sophserve.worker.penalties import PenaltyState
from sophserve.worker.token_rules import TokenRules

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sophserve.grammar.compiler import AnswerGrammar
    from sophserve.worker.follower import Follower, Prediction

_NO_DRAFTS: Mapping[int, Sequence[int]] = MappingProxyType({})


class Pooler:
    """Makes one vector of a prompt's hidden states, chunk by chunk. token_ids: whose logits are wanted instead."""

    def __init__(self, pooling: Pooling) -> None:
        self.token_ids = list(pooling) if isinstance(pooling, tuple) else []
        self._last_only = pooling != "mean"
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


AxisPositions = Callable[[Sequence[int], int], tuple[Tensor, int] | None]
"""VisionLanguageModel.axis_positions."""


class RequestState:
    """A request on the worker: its tokens, how many of them are in the KV cache, and the blocks that it has there.

    owner, prediction: as in AddedRequest. follower: guesses its next tokens, on rank 0, where predicted is what the
    model's layer for further tokens, or a smaller model, said last. passed: how many of its tokens went through that,
    as far as it is known of all before them. ahead: guesses that went through it behind those.
    """

    def __init__(self, added: AddedRequest, vocab_size: int, axis_positions: AxisPositions | None = None) -> None:
        self.id = added.id
        self.params = added.params
        self.seed = added.seed
        self.end_token_ids = added.end_token_ids
        self.prompt_length = added.prompt_length
        self.tokens = array("i", added.token_ids)
        self.computed = added.computed
        self.pooler = Pooler(added.pooling) if added.pooling else None
        self.images = added.images
        self.owner = added.owner
        self.prediction = array("i", added.prediction)
        self.follower: Follower | None = None
        self.predicted: Prediction | None = None
        self.shared = self.passed = added.computed
        self.ahead: list[int] = []
        # Where images make them differ: the prompt's positions on each axis, and how far on those behind it are.
        self.axes, self.shift = _axes(added, axis_positions) if axis_positions and added.images else (None, 0)
        self.blocks = array("i")
        # Of structured output: what follows the answer, the mask that is being computed, whether that takes long.
        self.grammar: AnswerGrammar | None = None
        self.mask: Future[list[bytes]] | None = None
        self.slow_masks = False
        # The logits for a token that could not be chosen yet, `[vocab]`.
        self.held: Tensor | None = None
        self.penalties = PenaltyState(self.tokens, self.prompt_length) if PenaltyState.needed(self.params) else None
        self.rules = TokenRules(added, vocab_size)
        for token_id in self.tokens[self.prompt_length :]:
            self.rules.append(token_id)

    def extend(self, token_ids: list[int]) -> None:
        self.tokens.extend(token_ids)
        for token_id in token_ids:
            self.rules.append(token_id)
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
class ImageRows:
    """Rows of a batch from `first_row` on that stand for placeholders `first` to `end` of an image."""

    digest: bytes
    first_row: int
    first: int
    end: int


class Sampled(NamedTuple):
    """A request that is given a token, and behind it as many more as hold of those guessed, its drafts."""

    state: RequestState
    drafts: Sequence[int] = ()


@dataclass(frozen=True)
class FlatBatch:
    """inputs: of the model, on the host, maybe of no tokens; states: whose these are, in order. sampled: the requests
    that get tokens, from the rows in sample_rows, int64, one for each of them and each draft. held: those that get one
    from logits that are there already. images: what images stand for. places: of each row, int32, how many tokens of
    its sequence come before."""

    inputs: StepInputs
    states: list[RequestState]
    sampled: list[Sampled]
    sample_rows: Tensor
    prompt_chunks: list[PromptChunk]
    pooled_chunks: list[PooledChunk]
    held: list[RequestState]
    images: list[ImageRows]
    places: Tensor


class BatchBuilder:
    """Holds the request states and turns each step plan into a flat batch. axis_positions: of a model that sees."""

    def __init__(self, block_size: int, vocab_size: int, axis_positions: AxisPositions | None = None) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self._axis_positions = axis_positions
        self.states: dict[int, RequestState] = {}

    def take_in(self, plan: StepPlan) -> list[RequestState]:
        """Drop requests, add others and give them blocks, as the plan says. Returns those dropped."""
        dropped = [state for identity in plan.dropped if (state := self.states.pop(identity, None))]
        for added in plan.added:
            self.states[added.id] = RequestState(added, self.vocab_size, self._axis_positions)
        for scheduled in plan.scheduled:
            self.states[scheduled.id].blocks.extend(scheduled.new_blocks)
        return dropped

    def build(self, plan: StepPlan, drafts: Mapping[int, Sequence[int]] = _NO_DRAFTS) -> FlatBatch:
        """Lay out the tokens of a plan that was taken in. drafts: what is guessed to follow the last token of requests,
        by id."""
        # Arrays, not tensors: the model's weights have driven torch's code out of the caches, and a single operator
        # takes a hundred microseconds then.
        token_ids, positions, slots, sample_rows = array("i"), array("i"), array("i"), array("q")
        input_lengths, cached_lengths, places = array("i"), array("i"), array("i")
        scheduled_states, chunks, pooled, held = [], [], [], []
        images: list[ImageRows] = []
        longest = 0
        sampled: list[Sampled] = []
        # Sequences of one row stand first.
        for scheduled in sorted(plan.scheduled, key=lambda each: each.id in drafts) if drafts else plan.scheduled:
            state = self.states[scheduled.id]
            start, end = state.computed, state.computed + scheduled.count
            if state.held is not None:
                held.append(state)
                continue
            if start == end:  # an image of it is being encoded
                continue
            first_row = len(token_ids)
            if chunk := _prompt_chunk(state, first_row, start, end):
                chunks.append(chunk)
            images += _image_rows(state, first_row, start, end)
            token_ids += state.tokens[start:end]
            guessed = drafts.get(state.id, ())
            token_ids.extend(guessed)
            end += len(guessed)
            in_text = min(max(start, state.prompt_length), end)  # where the answer begins
            positions.extend(range(start, in_text))
            positions.extend(range(in_text + state.shift, end + state.shift))
            scheduled_states.append(state)
            input_lengths.append(end - start)
            cached_lengths.append(start)
            slots.extend(slots_of(state.blocks, self.block_size, start, end))
            places.extend(range(start, end))
            longest = max(longest, end)
            state.computed = start + scheduled.count
            if state.pooler:
                pooled.append(PooledChunk(state, slice(first_row, len(token_ids)), end == len(state.tokens)))
            elif state.computed == len(state.tokens):
                sampled.append(Sampled(state, guessed))
                sample_rows.extend(range(len(token_ids) - len(guessed) - 1, len(token_ids)))
        inputs = StepInputs(
            as_tensor(input_lengths),
            as_tensor(cached_lengths),
            tables_of(scheduled_states, -(-longest // self.block_size)),
            as_tensor(slots),
            longest,
            ids=as_tensor(token_ids),
            positions=as_tensor(positions),
            axis_positions=_axis_positions(scheduled_states, cached_lengths, input_lengths, positions),
        )
        sampling = sampled, as_tensor(sample_rows)
        return FlatBatch(inputs, scheduled_states, *sampling, chunks, pooled, held, images, as_tensor(places))


def slots_of(blocks: array[int], block_size: int, start: int, end: int) -> Iterator[int]:
    """Where the places from start to end of a sequence with these blocks lie in the cache."""
    while start < end:
        index, offset = divmod(start, block_size)
        count = min(block_size - offset, end - start)
        slot = blocks[index] * block_size + offset
        yield from range(slot, slot + count)
        start += count


def tables_of(states: Sequence[RequestState], width: int) -> Tensor:
    """Their block tables, int32 `[states, width]`."""
    tables = array("i")
    for state in states:
        blocks = state.blocks[:width]
        tables += blocks
        tables.frombytes(bytes((width - len(blocks)) * tables.itemsize))
    return as_tensor(tables).view(len(states), width)


def _axes(added: AddedRequest, axis_positions: AxisPositions) -> tuple[Tensor | None, int]:
    """Positions of a prompt's tokens, int32 `[axes, tokens]`: those of a text go up by one on every axis, those of an
    image as its model says, and the text goes on behind it. And what to add to an index behind the prompt."""
    parts, index, position = [], 0, 0
    for image in added.images:
        found = axis_positions(image.shape.grid, image.shape.tokens)
        if found is None:
            return None, 0
        offsets, advance = found
        text = torch.arange(position, position + image.start - index, dtype=torch.int32)
        position += len(text)
        parts += [text.expand(len(offsets), -1), offsets.int() + position]
        index, position = image.start + image.shape.tokens, position + advance
    text = torch.arange(position, position + added.prompt_length - index, dtype=torch.int32)
    return torch.cat([*parts, text.expand(len(parts[0]), -1)], 1), position - index


def _axis_positions(
    states: list[RequestState], starts: array[int], lengths: array[int], positions: array[int]
) -> Tensor | None:
    """The positions of a batch on each axis, int32 `[axes, tokens]`; None if they are the same on all, as `positions`
    has them. starts: where the rows of each sequence begin in it."""
    found: Tensor | None = None
    for state, start, length, row in zip(states, starts, lengths, accumulate(lengths, initial=0), strict=False):
        if state.axes is None or start >= state.prompt_length:
            continue
        if found is None:
            found = as_tensor(positions).repeat(len(state.axes), 1)
        part = state.axes[:, start : start + length]
        found[:, row : row + part.shape[1]] = part
    return found


def _image_rows(state: RequestState, first_row: int, start: int, end: int) -> Iterator[ImageRows]:
    """Of the tokens from start to end, those that images stand for."""
    for image in state.images:
        first, last = max(start, image.start), min(end, image.start + image.shape.tokens)
        if first < last:
            yield ImageRows(image.digest, first_row + first - start, first - image.start, last - image.start)


def _prompt_chunk(state: RequestState, first_row: int, start: int, end: int) -> PromptChunk | None:
    """The logits at position p tell the token at p + 1; the prompt's first token has none."""
    if state.params.prompt_logprobs is None:
        return None
    targets = state.tokens[start + 1 : min(end + 1, state.prompt_length)].tolist()
    return PromptChunk(state, first_row, start + 1, targets) if targets else None
