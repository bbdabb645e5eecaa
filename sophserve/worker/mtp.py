"""What the model's own layer for further tokens says of the next ones (multi-token prediction,
https://arxiv.org/abs/2412.19437)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from math import exp

import torch
from torch import Tensor

from device.interface import Ops
from device.sample_params import SampleParams
from sophserve.model.decoder import CausalLM
from sophserve.worker.arrays import as_tensor
from sophserve.worker.batch import FlatBatch, RequestState
from sophserve.worker.follower import Prediction


class MtpDrafter:
    """Has the rows of a step go through the layer once it is known which token follows each, so that its cache holds at
    the place of a token what was made of it and of the next one.

    What it says is a guess, so it does no harm where that is of another token: at the last place of a shared prefix,
    which may go on otherwise, and where the next token was not chosen in the same step. Decode steps may leave it out,
    and it then says nothing more of their sequences; prompts go through it for those that share them.
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._device = model.context.device

    def run(self, batch: FlatBatch, hidden: Sequence[Tensor], *, guessing: bool) -> bool:
        """Take the hidden states, each `[tokens, hidden]`, of a batch whose tokens have been chosen. guessing: whether
        to say on rank 0 what follows the newest tokens of its requests; all ranks must be asked alike. Returns whether
        there was something to do."""
        inputs, ids, rows = batch.inputs, array("i"), array("q")
        whole, newest = [], []
        for state, start, count in zip(
            batch.states, inputs.cached_lengths.tolist(), inputs.input_lengths.tolist(), strict=True
        ):
            following = state.tokens[start + 1 : start + 1 + count]
            ids += following
            if state.passed >= start and state.params.speculative_tokens != 0:
                whole.append(state)
                if following and state.computed + 1 == len(state.tokens) and not state.pooler:
                    newest.append(state)
                    rows.append(len(ids) - 1)
            # Behind a guess that did not come true, and of what is not known yet, any will do: it is written over.
            ids.extend([0] * (count - len(following)))
        if len(batch.sample_rows) == len(ids) and not (guessing and whole):
            return False
        taken, following_inputs = self._take(hidden), replace(inputs, ids=as_tensor(ids))
        further = self._model.predict(taken, self._device.prepare(following_inputs, self._model.ropes))
        for state in whole:
            state.passed = state.computed
        if guessing and newest:
            self._say(newest, further[as_tensor(rows)])
        return True

    def _take(self, hidden: Sequence[Tensor]) -> Tensor:
        """A copy, since results may go with the next preparation."""
        return hidden[0].clone()

    def _say(self, states: list[RequestState], further: Tensor) -> None:
        """Rank 0 notes what follows these. further: what was made of their newest tokens."""
        logits = self._model.logits(further)
        if self._model.context.communicator.rank == 0:
            self._note(states, logits)

    def _note(self, states: list[RequestState], logits: Tensor) -> None:
        """What these, `[states, vocab]`, say of the next tokens."""
        for state, (row, probability) in zip(states, most_probable(self._device.ops, logits), strict=True):
            if state.predicted is None or state.predicted.place != len(state.tokens):
                state.predicted = Prediction(len(state.tokens), [], [])
            state.predicted.token_ids.append(self._token(row))
            state.predicted.probabilities.append(probability)

    def _token(self, row: int) -> int:
        """What a row of the head stands for."""
        return row


def most_probable(ops: Ops, logits: Tensor) -> list[tuple[int, float]]:
    """The best token of each row of logits, `[rows, vocab]`, and how probable it is."""
    zeros, none = torch.zeros(len(logits)), torch.zeros(len(logits), dtype=torch.int64)
    params = SampleParams(zeros, none.int(), zeros + 1, zeros, none, none, num_logprobs=0)
    result = ops.sample(logits, params)
    assert result.logprobs is not None
    return list(zip(result.token_ids.tolist(), map(exp, result.logprobs.tolist()), strict=True))
