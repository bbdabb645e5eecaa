"""What an EAGLE-3 head says of the next tokens (https://arxiv.org/abs/2503.01840)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sophserve.link.messages import StepPlan
from sophserve.model.eagle3 import Eagle3
from sophserve.worker.batch import RequestState
from sophserve.worker.draft_model import lay_out
from sophserve.worker.mtp import MtpDrafter


class Eagle3Drafter(MtpDrafter):
    """The head, on the rank that answers, which has all of it. As the model's own layer it takes in every step's rows
    once it is known which token follows each, and says one token further; of those sequences for which that is worth
    the time it then says one after another, from what it made of the one before."""

    def __init__(self, model: Eagle3, block_size: int) -> None:
        super().__init__(model)
        self._head = model
        self._block_size = block_size
        self._made: dict[int, Tensor] = {}  # by id what it made last, of which it says the token behind
        self.recordings = 0
        self.caught_up = False

    def take_in(self, plan: StepPlan, states: Mapping[int, RequestState]) -> None:
        """Forget the requests that are gone."""
        for identity in plan.dropped:
            self._made.pop(identity, None)

    def start(self, states: Sequence[RequestState]) -> list[RequestState]:
        """Those of which it has said one token."""
        self.caught_up = True
        return [each for each in states if each.predicted and each.predicted.place == len(each.tokens)]

    def go_on(self, states: Sequence[RequestState]) -> list[RequestState]:
        """Say one more token of these. Returns those that there is room for."""
        self.caught_up = False
        rows, able = [], []
        for state in states:
            assert state.predicted
            place, token_ids, _ = state.predicted
            place += len(token_ids) - 2
            if place < min(self._head.context.max_positions, len(state.blocks) * self._block_size):
                rows.append((state, place, token_ids[-1:]))
                able.append(state)
        if able:
            inputs, _ = lay_out(rows, self._block_size)
            hidden = torch.stack([self._made[state.id] for state in able])
            self._say(able, self._head.predict(hidden, self._device.prepare(inputs, self._head.ropes)))
        return able

    def _take(self, hidden: Sequence[Tensor]) -> Tensor:
        return self._head.fuse(hidden)

    def _say(self, states: list[RequestState], further: Tensor) -> None:
        for state, row in zip(states, further, strict=True):
            self._made[state.id] = row.clone()
        self._note(states, self._head.logits(further))

    def _token(self, row: int) -> int:
        ids = self._head.target_ids
        return row if ids is None else int(ids[row])
