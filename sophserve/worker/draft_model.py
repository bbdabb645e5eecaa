"""A smaller model with the same vocabulary that says what may follow (https://arxiv.org/abs/2211.17192)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from torch import Tensor

from device.interface import StepInputs
from sophserve.link.messages import StepPlan
from sophserve.model.decoder import CausalLM
from sophserve.worker.arrays import as_tensor
from sophserve.worker.batch import RequestState, slots_of, tables_of
from sophserve.worker.captured_decode import CapturedDecode
from sophserve.worker.follower import Prediction
from sophserve.worker.mtp import most_probable

# Tokens that it takes in at most between two steps, so that a long prompt holds up nobody.
CATCH_UP = 512
# Rows of a sequence up to which they are computed as if each were one: what came true of a step, as a rule.
_FEW = 4


def lay_out(rows: Sequence[tuple[RequestState, int, list[int]]], block_size: int) -> tuple[StepInputs, Tensor]:
    """A step over tokens of sequences from places on, and the last row of each, int64."""
    ids, places, slots, lengths, starts, last = (array(kind) for kind in "iiiiiq")
    for state, start, token_ids in rows:
        end = start + len(token_ids)
        ids.extend(token_ids)
        places.extend(range(start, end))
        slots.extend(slots_of(state.blocks, block_size, start, end))
        lengths.append(len(token_ids))
        starts.append(start)
        last.append(len(ids) - 1)
    longest = max(start + count for start, count in zip(starts, lengths, strict=True))
    tables = tables_of([state for state, _, _ in rows], -(-longest // block_size))
    host = as_tensor(lengths), as_tensor(starts), tables, as_tensor(slots), longest
    return StepInputs(*host, ids=as_tensor(ids), positions=as_tensor(places)), as_tensor(last)


class DraftModel:
    """The model, on the rank that answers, which has all of it. Its caches lie in the blocks of the large model's, so
    that a prefix that is found again, and what preemption takes away, is the same for both.

    What it lacks of a sequence it takes in before it guesses, and not with the steps: requests that nothing is guessed
    for cost it nothing. So it knows of each block whether it was ever there for it all. vocab_size: of the large model;
    the smaller one may have more or fewer rows behind the tokens that both have. captured: what replays its steps.
    caught_up: whether the last step took in more than what a step of the large model gives.
    """

    def __init__(self, model: CausalLM, block_size: int, vocab_size: int, captured: CapturedDecode | None) -> None:
        self._model = model
        self._device = model.context.device
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._max_len = model.context.max_positions
        self._captured = captured
        self._whole: set[int] = set()  # blocks of whose tokens it has all
        self.caught_up = False

    @property
    def recordings(self) -> int:
        """How many of its steps were recorded."""
        return self._captured.recordings if self._captured else 0

    def take_in(self, plan: StepPlan, states: Mapping[int, RequestState]) -> None:
        """Take note of the blocks of a plan, which the states have."""
        for entry in plan.scheduled:
            if not entry.new_blocks:
                continue
            state, new = states[entry.id], entry.new_blocks
            first = len(state.blocks) - len(new)
            found = max(0, state.shared // self._block_size - first)
            self._whole.difference_update(new[found:])
            if not first:
                known = next((place for place, block in enumerate(new[:found]) if block not in self._whole), found)
                state.passed = known * self._block_size

    def start(self, states: Sequence[RequestState]) -> list[RequestState]:
        """Compute what it lacks of these, as far as there is time for, and say what comes next of those of which it
        has all then. Returns these."""
        room, rows, ready = CATCH_UP, list[tuple[RequestState, int, list[int]]](), list[RequestState]()
        for state in states:
            self._come_true(state)
            lacking = state.tokens[state.passed :].tolist()
            if not room or len(state.tokens) >= self._max_len:
                continue
            taken = lacking[:room]
            room -= len(taken)
            rows.append((state, state.passed, taken))
            self._passed(state, state.passed + len(taken))
            if len(taken) == len(lacking):
                state.predicted = Prediction(len(state.tokens), [], [])
                ready.append(state)
        self.caught_up = sum(len(taken) for _, _, taken in rows) > _FEW * len(rows)
        self._note(rows, self._compute(rows), ready)
        return ready

    def go_on(self, states: Sequence[RequestState]) -> list[RequestState]:
        """Say one more token of these. Returns those that there is room for."""
        rows: list[tuple[RequestState, int, list[int]]] = []
        self.caught_up = False
        for state in states:
            assert state.predicted
            place, token_ids, _ = state.predicted
            place += len(token_ids) - 1
            if place < min(self._max_len, len(state.blocks) * self._block_size):
                rows.append((state, place, token_ids[-1:]))
                state.ahead.append(token_ids[-1])
        able = [state for state, _, _ in rows]
        self._note(rows, self._compute(rows), able)
        return able

    def _come_true(self, state: RequestState) -> None:
        """Of the guesses that it has, keep those that are tokens now. The newest token is computed in any case."""
        start = state.passed
        for place, token_id in enumerate(state.ahead, start):
            if place >= len(state.tokens) - 1 or state.tokens[place] != token_id:
                break
            state.passed = place + 1
        state.ahead = []
        self._passed(state, min(state.passed, len(state.tokens) - 1), start)

    def _passed(self, state: RequestState, end: int, start: int | None = None) -> None:
        """It has what is before `end`."""
        first = (state.passed if start is None else start) // self._block_size
        state.passed = end
        self._whole.update(state.blocks[first : end // self._block_size])

    def _compute(self, rows: list[tuple[RequestState, int, list[int]]]) -> Tensor | None:
        """Logits behind the last token of each, `[sequences, vocab]`. rows: places from which on, and the tokens."""
        if not rows:
            return None
        rows.sort(key=lambda row: len(row[2]))  # sequences of one row stand first
        most = self._model.vocab_size - 1
        known = [(state, start, [min(token_id, most) for token_id in token_ids]) for state, start, token_ids in rows]
        inputs, last = lay_out(known, self._block_size)
        logits = None
        if self._captured and len(rows[-1][2]) <= _FEW:
            logits = self._captured.run_rows(inputs, inputs.positions)
        if logits is not None:
            return logits if len(logits) == len(last) else logits[last]
        hidden = self._model(self._device.prepare(inputs, self._model.ropes))
        return self._model.logits(hidden[last])

    def _note(
        self,
        rows: list[tuple[RequestState, int, list[int]]],
        logits: Tensor | None,
        ready: list[RequestState],
    ) -> None:
        """Add what these say to what is predicted of those that are ready."""
        if logits is None or not ready:
            return
        if logits.shape[-1] > self._vocab_size:
            logits = logits[:, : self._vocab_size].contiguous()
        of = {id(state) for state in ready}
        for (state, _, _), (token_id, probability) in zip(rows, most_probable(self._device.ops, logits), strict=True):
            if id(state) in of and state.predicted:
                state.predicted.token_ids.append(token_id)
                state.predicted.probabilities.append(probability)
