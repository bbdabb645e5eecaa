"""Which guesses of tokens a step computes beside what it must: those that are likely to gain more time than they take.

What is decided here changes how long an answer takes, and not one bit of it: every token is sampled from the model's
own logits with its own randomness, and a guess only counts if it is that token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sophserve.config import EngineConfig
from sophserve.grammar.follow import GrammarMasks
from sophserve.link.messages import StepPlan
from sophserve.worker.batch import RequestState
from sophserve.worker.follower import FIRST_CHANCES, SURE, Follower
from sophserve.worker.lookup import History, Lookup
from sophserve.worker.step_costs import Gate, StepCosts

# Steps after which it is asked again whether guesses of steps of that size can be worth their time.
_PERIOD = 16


class Speculation:
    """Guesses for the sequences of rank 0. max_rows: most rows of a decode step. costs, mtp_costs: of steps, and of
    what the model's layer for further tokens takes beside them."""

    def __init__(self, config: EngineConfig, max_rows: int, grammars: GrammarMasks | None) -> None:
        self.costs, self.mtp_costs = StepCosts(), StepCosts()
        self._gate = Gate()
        self._sizes = config.drafting.sizes
        self._most_tokens = config.max_num_batched_tokens
        self._max_rows = max_rows
        self._grammars = grammars
        self._history = History(self._sizes)
        self._lasting = list(FIRST_CHANCES)
        self._worth: dict[int, tuple[int, bool]] = {}  # by rows: when that was found, and what
        self._steps = 0

    @property
    def predicting(self) -> bool:
        """Whether the layer for further tokens is to go on. It changes in steps alone that are open to guesses."""
        return self._gate.open

    def forget(self, dropped: Sequence[RequestState]) -> None:
        """These are computed no more; what they said may be said again."""
        for state in dropped:
            if state.follower and self._sizes:
                self._history.add(state.owner, state.tokens[state.prompt_length :])

    def propose(self, plan: StepPlan, states: Mapping[int, RequestState]) -> dict[int, list[int]]:
        """What to compute behind the last tokens of requests, by id."""
        self._steps += 1
        rows, most, open_to_guesses = 0, 0, []
        for entry in plan.scheduled:
            state = states[entry.id]
            if state.held is not None:
                continue
            rows += entry.count
            if entry.drafts and state.computed + 1 == len(state.tokens):
                open_to_guesses.append((state, entry.drafts))
                most = max(most, entry.drafts)
        room = (self._max_rows if rows <= self._max_rows else self._most_tokens) - rows
        if not open_to_guesses or room <= 0:
            return {}
        chances, looked_up = [], list[float]()
        if self._can_be_worth(rows, len(open_to_guesses), most):
            for place, (state, drafts) in enumerate(open_to_guesses):
                if state.follower is None:
                    state.follower = self._follow(state)
                chances += [(chance, place) for chance in state.follower.chances(drafts, state.predicted)]
                looked_up += state.follower.looked_up(drafts)
            chances.sort(reverse=True)
        likely = [chance for chance, _ in chances[:room]]
        predicted = any(state.predicted and state.predicted.place == len(state.tokens) for state, _ in open_to_guesses)
        beside = self._judge(rows, len(open_to_guesses), likely, looked_up, predicted=predicted)
        count = self.costs.worth(rows, len(open_to_guesses), likely, beside)
        counts: dict[int, int] = {}
        for _, place in chances[:count]:
            counts[place] = counts.get(place, 0) + 1
        chosen = [open_to_guesses[place][0] for place in counts]
        proposed = {state.id: self._guess(state, count) for state, count in zip(chosen, counts.values(), strict=True)}
        return {identity: guesses for identity, guesses in proposed.items() if guesses}

    def _judge(
        self, rows: int, sequences: int, chances: list[float], looked_up: list[float], *, predicted: bool
    ) -> float:
        """Learn whether the layer for further tokens pays. Returns the seconds that it will take."""
        if not self.mtp_costs.known:
            return 0.0
        seconds = self.mtp_costs.seconds(rows)
        gain = None
        if predicted:
            alone = self.costs.rate(rows, sequences, sorted(looked_up, reverse=True)[: len(chances)])
            gain = self.costs.rate(rows, sequences, chances, seconds) / alone
        self._gate.learn(gain)
        return seconds if predicted else 0.0

    def _can_be_worth(self, rows: int, sequences: int, most: int) -> bool:
        """Whether guesses would be worth their time if nearly all were right."""
        then, found = self._worth.get(rows, (-_PERIOD, False))
        if self._steps - then >= _PERIOD:
            chances = [SURE**count for count in range(1, most + 1) for _ in range(sequences)]
            found = self.costs.worth(rows, sequences, chances[: 2 * max(sequences, most)]) > 0
            self._worth[rows] = self._steps, found
        return found

    def _follow(self, state: RequestState) -> Follower:
        lookup = None
        if self._sizes:
            history = self._history.of(state.owner)
            lookup = Lookup(state.tokens, self._sizes, state.prediction, state.prompt_length, history)
        return Follower(state.tokens, lookup, self._lasting)

    def _guess(self, state: RequestState, count: int) -> list[int]:
        """At most so many tokens, none behind one that ends the answer, nor any that does not fit its grammar."""
        assert state.follower
        guesses = state.follower.guess(count)
        for place, token_id in enumerate(guesses, 1):
            if token_id in state.end_token_ids:
                guesses = guesses[:place]
        return guesses[: self._grammars.fitting(state, guesses)] if self._grammars else guesses
