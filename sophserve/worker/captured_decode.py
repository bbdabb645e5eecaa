"""Decode steps as one recorded sequence of operators."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from device.interface import Device, StepInputs
from sophserve.model.decoder import CausalLM, Passed
from sophserve.worker.batch import FlatBatch

log = logging.getLogger(__name__)


class CapturedDecode:
    """Replays decode steps; a recording serves every batch up to its size, and a larger batch makes a larger one.

    The rows of a sequence with drafts are recorded like sequences of one row each, in order, with one block table: an
    operator of attention writes all keys and values before it reads any. The bits are those of the same operators
    called one by one. The head is no part of it where a layer predicts further tokens, which needs the hidden states.
    Of a stage that is not the last one it is what `advance` gives of the model.
    max_rows: of a step that is recorded. recordings: how many were made.
    """

    def __init__(self, device: Device, model: CausalLM, max_rows: int, max_blocks: int) -> None:
        self.recordings = 0
        self._device = device
        self._model = model
        self._max_rows = max_rows
        self._max_blocks = max_blocks
        self._refused = False
        self._size = 0
        self._replay: Callable[[int], Tensor]
        self._inputs: StepInputs
        self._passed: Passed | None = None
        self._residual: Tensor
        self.handed: list[Tensor] = []  # as of the model, of the last recording, whose first rows are those of a step
        self._record(1)  # while loading: what of the device is slow the first time delays no request

    def advance(self, batch: FlatBatch, passed: Passed | None) -> Passed | None:
        """As CausalLM.advance, until the next call; None as `run`."""
        x = self.run(batch, passed)
        return None if x is None else (x, self._residual[: len(x)])

    def run(self, batch: FlatBatch, passed: Passed | None = None) -> Tensor | None:
        """Logits `[rows, vocab]`, or of a model with such a layer what they are made of, `[rows, hidden]`, until the
        next call; None for a batch that is no decode step, or where the device cannot record. passed: what the stage
        before this one made."""
        # The last token of a prompt with images may stand elsewhere on each axis.
        decodes = len(batch.inputs.ids) == len(batch.sample_rows) and batch.inputs.axis_positions is None
        if batch.prompt_chunks or batch.images or not decodes:
            return None
        return self.run_rows(batch.inputs, batch.places, passed)

    def run_rows(self, given: StepInputs, places: Tensor, passed: Passed | None = None) -> Tensor | None:
        """The same of these rows; None for too many or none, or where the device cannot record. places: as of a
        FlatBatch."""
        rows = len(given.ids)
        if self._refused or not 0 < rows <= self._max_rows:
            return None
        if rows > self._size:
            self._record(rows)
            if self._refused:
                return None
        mine = self._inputs
        cached, tables = given.cached_lengths, given.block_tables
        if rows > len(cached):
            cached, tables = places, tables.repeat_interleave(given.input_lengths, 0)
        mine.ids[:rows] = given.ids
        mine.cached_lengths[:rows] = cached
        mine.positions[:rows] = given.positions
        mine.slot_mapping[:rows] = given.slot_mapping
        mine.block_tables[:rows, : tables.shape[1]] = tables
        for held, values in zip(self._passed or (), passed or (), strict=True):
            held[:rows] = values
        return self._replay(rows)

    def _record(self, rows: int) -> None:
        # Sizes double, so that a growing batch is seldom recorded anew.
        size = min(self._max_rows, 1 << (rows - 1).bit_length())
        self.recordings += 1
        ones = torch.ones(size, dtype=torch.int32)
        tables = torch.zeros(size, self._max_blocks, dtype=torch.int32)
        lengths, slots, ids, positions = (ones.clone() for _ in range(4))
        self._inputs = StepInputs(ones, lengths, tables, slots, 0, ids=ids, positions=positions)
        if not self._model.is_first:
            dtype, hidden = self._model.context.dtype, self._model.config.hidden_size
            self._passed = torch.zeros(size, hidden, dtype=dtype), torch.zeros(size, hidden, dtype=dtype)
        replay = self._device.capture(self._step, size)
        if replay is None:
            self._refused = True
            log.info("decode steps are not captured: the model computes with more than the device's operators")
            return
        self._size, self._replay = size, replay

    def _step(self) -> Tensor:
        step = self._device.prepare(self._inputs, self._model.ropes)
        if not self._model.is_last:
            x, self._residual = self._model.advance(step, self._passed)
            return x
        # Models of plugins may have a __call__ of their own that knows nothing of stages.
        hidden = self._model(step) if self._passed is None else self._model(step, self._passed)
        self.handed = self._model.handed
        return hidden if self._model.mtp else self._model.logits(hidden)
