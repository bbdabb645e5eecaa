"""After the workers were lost: who is to blame, found without harm to the others."""

from __future__ import annotations

from collections.abc import Mapping

from sophserve.engine.request import Request
from sophserve.engine.scheduler import Scheduler
from sophserve.link.messages import StepPlan


class Recovery:
    """Stands before a scheduler. The requests that lost workers ran run one at a time until each has given a token: if
    the workers are lost once more, the one that they ran then is to blame."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._accused: set[int] = set()  # workers were lost with them, and they have given no token since
        self._suspects: list[Request] = []  # those to be tried, the next one last

    def restart(self) -> list[Request]:
        """The workers were lost: queue again what they ran. Returns the requests that are to blame."""
        lost = self._scheduler.restart()
        to_blame = [request for request in lost if request.id in self._accused]
        self._accused &= self._scheduler.waiting.keys()
        self._accused.update(request.id for request in lost)
        self._suspects = sorted(lost, key=lambda request: request.id, reverse=True)
        return to_blame

    def schedule(self) -> StepPlan | None:
        """The next step, or None while there is nothing to compute."""
        running, waiting = self._scheduler.running, self._scheduler.waiting
        while self._suspects:
            suspect = self._suspects[-1]
            if suspect.id in self._accused and (suspect.id in running or suspect.id in waiting):
                plan = self._scheduler.schedule(only=suspect)
                if plan or suspect.id in running or suspect.pending:
                    return plan
                self._suspects.clear()  # it finds no room beside those that gave a token: let all go on together
            else:
                self._suspects.pop()
        return self._scheduler.schedule()

    def update(self, sampled: Mapping[int, list[int]]) -> None:
        """As Scheduler.update. Whoever gave a token is no suspect."""
        self._scheduler.update(sampled)
        if self._accused:
            self._accused.difference_update(identity for identity, tokens in sampled.items() if tokens)
