"""Which guesses of tokens a step computes beside what it must: those that are likely to gain more time than they take.

What is decided here changes how long an answer takes, and not one bit of it: every token is sampled from the model's
own logits with its own randomness, and a guess only counts if it is that token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from sophserve.config import EngineConfig
from sophserve.grammar.follow import GrammarMasks
from sophserve.link.messages import StepPlan
from sophserve.worker.batch import RequestState
from sophserve.worker.draft_model import DraftModel
from sophserve.worker.eagle3 import Eagle3Drafter
from sophserve.worker.follower import FIRST_CHANCES, SURE, Follower
from sophserve.worker.lookup import History, Lookup
from sophserve.worker.step_costs import Gate, StepCosts

# Of the time that a draft model takes to catch up, the part that counts for each of the next steps.
_SHARE = 1 / 32
# Steps after which it is asked again whether guesses of steps of that size can be worth their time.
_PERIOD = 16
# Of the time of steps, what looking for guesses may take where none is found; and of how many steps that is kept, or
# owed.
_SEARCH, _SAVED_STEPS = 0.005, 16


class Speculation:
    """Guesses for the sequences of rank 0. max_rows: most rows of a decode step. draft_model: a smaller model that
    guesses, or a head. costs, mtp_costs: of steps, and of what the model's layer for further tokens or a head takes
    beside them."""

    def __init__(
        self,
        config: EngineConfig,
        max_rows: int,
        grammars: GrammarMasks | None,
        draft_model: DraftModel | Eagle3Drafter | None = None,
    ) -> None:
        self.costs, self.mtp_costs, self._draft_costs = StepCosts(), StepCosts(), StepCosts()
        self._draft_model = draft_model
        self._debt = 0.0  # seconds for which the draft model caught up
        self._gate = Gate()
        self._sizes = config.drafting.sizes
        self._most_tokens = config.max_num_batched_tokens
        self._max_rows = max_rows
        self._grammars = grammars
        self._history = History(self._sizes)
        self._lasting = list(FIRST_CHANCES)
        self._worth: dict[int, tuple[int, bool]] = {}  # by rows: when that was found, and what
        self._steps = 0
        self._search, self._turn = 0.0, 0  # seconds that looking for guesses may take, and where
        self._following = True  # whether guesses are likely to be found again
        self._proposing, self._asking = 0.0, 0.0  # seconds that the last guesses took, beside a smaller model's
        self._waited, self._computed = 0.0, set[int]()  # seconds before the last step, and whose that was

    @property
    def predicting(self) -> bool:
        """Whether the layer for further tokens is to go on. It changes in steps alone that are open to guesses."""
        return self._gate.open

    @property
    def _predicts(self) -> bool:
        """Whether anything but what is looked up says what follows."""
        return self.mtp_costs.known or self._draft_model is not None

    def learn(self, plan: StepPlan, rows: int, seconds: float, waited: float, predicting: float | None) -> None:
        """Take note of what a step took. waited: seconds since the one before. predicting: what the layer for further
        tokens took beside it.

        A step that goes on with the sequences of the one before follows as soon as the server is ready with that one's
        tokens, so that this wait is part of what a step takes; other steps wait for requests, too, and count with the
        last wait of that kind. Finding guesses is part of a step that has some."""
        computed = {entry.id for entry in plan.scheduled}
        if computed == self._computed:
            self._waited = waited
        self._computed = computed
        share = _SEARCH * seconds
        self._search = min(max(self._search, -_SAVED_STEPS * share) + share, _SAVED_STEPS * share)
        self.costs.add(rows, seconds + self._waited + self._proposing, guessed=self._proposing > 0)
        if predicting is not None:
            self.mtp_costs.add(rows, predicting)

    def forget(self, dropped: Sequence[RequestState]) -> None:
        """These are computed no more; what they said may be said again."""
        for state in dropped:
            if state.follower and self._sizes:
                self._history.add(state.owner, state.tokens[state.prompt_length :])

    def propose(self, plan: StepPlan, states: Mapping[int, RequestState]) -> dict[int, list[int]]:
        """What to compute behind the last tokens of requests, by id."""
        self._proposing = 0.0
        if self._draft_model:
            self._draft_model.take_in(plan, states)
        elif self._search <= 0 and not self._following:
            return {}
        begin, self._asking, search = time.perf_counter(), 0.0, self._search
        proposed = {identity: guesses for identity, guesses in self._propose(plan, states).items() if guesses}
        taken = time.perf_counter() - begin - self._asking
        if proposed:
            self._proposing, self._following = taken, True
        elif not self._following:
            self._search = search - taken
        return proposed

    def _propose(self, plan: StepPlan, states: Mapping[int, RequestState]) -> dict[int, list[int]]:
        self._steps += 1
        self._following = self._predicts
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
        chances, looked_up, spent = [], list[float](), 0.0
        if self._can_be_worth(rows, len(open_to_guesses), most):
            for state, _ in open_to_guesses:
                if state.follower is None:
                    state.follower = self._follow(state)
            if self._draft_model and self.predicting and self.costs.known:
                spent = self._draft(self._draft_model, rows, open_to_guesses)
            for place in self._places([state for state, _ in open_to_guesses]):
                state, drafts = open_to_guesses[place]
                follower = _follower(state)
                chances += [(chance, place) for chance in follower.chances(drafts, state.predicted)]
                looked_up += follower.looked_up(drafts)
            chances.sort(reverse=True)
        if not chances and not self._predicts:
            return {}
        likely = [chance for chance, _ in chances[:room]]
        predicted = any(state.predicted and state.predicted.place == len(state.tokens) for state, _ in open_to_guesses)
        beside = self._judge(rows, len(open_to_guesses), likely, looked_up, spent, predicted=predicted)
        count = self.costs.worth(rows, len(open_to_guesses), likely, beside)
        counts: dict[int, int] = {}
        for _, place in chances[:count]:
            counts[place] = counts.get(place, 0) + 1
        chosen = [open_to_guesses[place][0] for place in counts]
        return {state.id: self._guess(state, count) for state, count in zip(chosen, counts.values(), strict=True)}

    def _places(self, states: Sequence[RequestState]) -> Iterator[int]:
        """Of which sequences to look for guesses: of those that are likely to have some, and of the others, in turn, as
        many as there is time for."""
        turn = self._turn % len(states)
        for place in (*range(turn, len(states)), *range(turn)):
            if _follower(states[place]).follows or states[place].predicted:
                self._following = True
                yield place
            elif self._search > 0:
                begin, self._turn = time.perf_counter(), place + 1
                yield place
                self._search -= time.perf_counter() - begin

    def _draft(
        self, model: DraftModel | Eagle3Drafter, rows: int, open_to_guesses: list[tuple[RequestState, int]]
    ) -> float:
        """Have a smaller model say what follows where it is likelier to be right than what was found, as long as one
        more token of it gains more time than it takes. Returns the seconds for which that counts."""
        wanted = []
        for state, drafts in open_to_guesses:
            follower = _follower(state)
            if follower.match_chance() < follower.predicted_chance:
                wanted.append((state, drafts))
        lengths, spent, rest = {state.id: drafts for state, drafts in wanted}, 0.0, self._debt * _SHARE
        ready, taken = self._timed(model, partial(model.start, [state for state, _ in wanted]))
        if ready:
            spent = min(taken, self._draft_costs.seconds(len(ready)))
        self._debt += taken - spent - rest
        likely = {state.id: _newest_chance(state) for state in ready}
        tokens, counted = len(open_to_guesses) + sum(likely.values()), rows + len(ready)
        while ready := [state for state in ready if _said(state) < lengths[state.id]]:
            further = sum(likely[state.id] * _follower(state).predicted_chance for state in ready)
            extra = self._draft_costs.seconds(len(ready)) + self._more(counted, len(ready))
            if not self._goes_on(further, extra, tokens, self.costs.seconds(counted) + spent):
                break
            ready, taken = self._timed(model, partial(model.go_on, ready))
            spent, counted = spent + taken, counted + len(ready)
            for state in ready:
                likely[state.id] *= _newest_chance(state)
                tokens += likely[state.id]
        return spent + rest

    def _timed(
        self, model: DraftModel | Eagle3Drafter, step: Callable[[], list[RequestState]]
    ) -> tuple[list[RequestState], float]:
        """What a step of it gave, and the seconds that it took."""
        begin, recordings = time.perf_counter(), model.recordings
        ready = step()
        taken = time.perf_counter() - begin
        self._asking += taken
        if ready and recordings == model.recordings and not model.caught_up:
            self._draft_costs.add(len(ready), taken)
        return ready, taken

    def _more(self, rows: int, further: int) -> float:
        """Seconds that a step of so many rows takes longer with further ones."""
        return max(0.0, self.costs.seconds(rows + further) - self.costs.seconds(rows))

    def _goes_on(self, further: float, extra: float, tokens: float, seconds: float) -> bool:
        """Whether further tokens in extra seconds are more than tokens in seconds."""
        return further * seconds > tokens * extra

    def _judge(
        self,
        rows: int,
        sequences: int,
        chances: list[float],
        looked_up: list[float],
        spent: float,
        *,
        predicted: bool,
    ) -> float:
        """Learn whether what predicts pays. spent: seconds that a smaller model took. Returns those that the layer for
        further tokens will take, or these."""
        if not self._predicts:
            return 0.0
        seconds = spent + (self.mtp_costs.seconds(rows) if self.mtp_costs.known else 0.0)
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


def _follower(state: RequestState) -> Follower:
    assert state.follower
    return state.follower


def _said(state: RequestState) -> int:
    """How many tokens are predicted of it."""
    return len(state.predicted.token_ids) if state.predicted else 0


def _newest_chance(state: RequestState) -> float:
    """How likely the newest of the predicted tokens is right behind the others."""
    assert state.predicted
    return _follower(state).chance_of(state.predicted.probabilities[-1])
