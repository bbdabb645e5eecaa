"""What a stage before the last one does not know yet of the steps that it has computed: the tokens that were chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from sophserve.link.messages import StepPlan
from sophserve.worker.batch import Sampled
from sophserve.worker.sampler import DEFERRED, holding
from sophserve.worker.stages import Stages


class Unread:
    """The requests that were given tokens, by step, in order, until it is read which these are. All ranks read what the
    answering one tells them in the same order, but each as late as it can: while it computes the step after next the
    last stage may still choose the tokens of this one."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._steps: deque[tuple[int, list[Sampled]]] = deque()

    def add(self, step: int, requests: list[Sampled]) -> None:
        """These are given tokens in a step."""
        self._steps.append((step, requests))

    def catch_up(self, plan: StepPlan) -> None:
        """Wait for the tokens without which a plan cannot be begun: those of its requests, all before these, and all
        where guesses will be told. Those of steps that the last stage has long done are read as well: a rank may have
        to pass them on to others of its host."""
        ids = {entry.id for entry in plan.scheduled}
        everything = any(entry.drafts for entry in plan.scheduled)
        done = plan.step - (self._stages.count - self._stages.number)
        count = 0
        for place, (step, requests) in enumerate(self._steps, 1):
            if everything or step <= done or any(state.id in ids for state, _ in requests):
                count = place
        for _ in range(count):
            _, requests = self._steps.popleft()
            for sampled, tokens in zip(requests, told(self._stages, requests), strict=True):
                note(sampled, tokens)


def told(stages: Stages, requests: Sequence[Sampled], chosen: torch.Tensor | None = None) -> list[list[int]]:
    """The tokens that each request is given, as the answering rank says, which has chosen one for each of them and each
    of its drafts, int64, or DEFERRED."""
    ends = list(accumulate((1 + len(drafts) for _, drafts in requests), initial=0))
    shared = stages.tell(torch.full((ends[-1],), DEFERRED) if chosen is None else chosen).tolist()
    return [
        holding(shared[start:end], drafts) for (start, end), (_, drafts) in zip(pairwise(ends), requests, strict=True)
    ]


def note(sampled: Sampled, tokens: list[int], logits: torch.Tensor | None = None) -> None:
    """A request is given tokens, or none, since it is not known yet what its grammar allows; then it holds the logits,
    `[vocab]`, which only the answering rank has a use for."""
    state = sampled.state
    if tokens:
        state.held = None
        state.computed += len(tokens) - 1
        state.extend(tokens)
    elif state.held is None:
        state.held = torch.empty(0) if logits is None else logits.clone()
