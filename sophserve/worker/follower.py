"""How likely what may follow a sequence is right."""

from __future__ import annotations

from array import array
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from sophserve.drafting import MOST_TOKENS
from sophserve.worker.lookup import LONGEST, Lookup

# What is told apart, as more or less likely to be right: how long the match is that goes on, how probable what predicts
# found its token, and whatever it predicts.
_LENGTHS = (4, 8, 16)
_PROBABILITIES = (0.3, 0.6, 0.85)
_KINDS_OF_MATCHES = len(_LENGTHS) + 1
_KINDS_BY_LENGTH = [sum(length >= each for each in _LENGTHS) for length in range(LONGEST + MOST_TOKENS)]
_PREDICTED = _KINDS_OF_MATCHES + len(_PROBABILITIES) + 1
FIRST_CHANCES = (0.4, 0.6, 0.8, 0.9, 0.2, 0.45, 0.7, 0.9, 0.6)
"""Of guesses to be right, by the length of the match, then by the probability, then of all predictions, until more is
known."""
# How much one more guess counts for the chances of its sequence, and for those that later ones begin with.
_WEIGHT, _LASTING_WEIGHT = 0.12, 0.02
SURE = 0.98
"""No guess is surer than this."""


class Prediction(NamedTuple):
    """What the model's layer for further tokens, or a smaller model, says of the tokens from a place of a sequence on,
    and how probable it finds each behind those before it."""

    place: int
    token_ids: list[int]
    probabilities: list[float]


class Follower:
    """A sequence, whose tokens grow, with what may follow it, and how often that was right, by its kind. lookup: None
    where nothing is looked up. lasting: the chances that sequences begin with, which follow those of all."""

    def __init__(self, tokens: array[int], lookup: Lookup | None, lasting: list[float]) -> None:
        self.lookup = lookup
        self._tokens = tokens
        self._chances = lasting.copy()
        self._lasting = lasting
        self._end = len(tokens)
        # What was said to come from there on, each token with its kind, whether that is computed or not.
        self._said: list[list[tuple[int, int]]] = []
        self._predicted: list[int] | None = None  # what is guessed, unless it is looked up
        self._kinds: list[int] = []  # of what follows the match, which is longer with each token that is right

    def match_chance(self) -> float:
        """How likely the next token is what was found; 0 where nothing was. Learns from what was said last first."""
        self._learn()
        match = self.lookup.match() if self.lookup else None
        self._kinds = _KINDS_BY_LENGTH[match.length :] if match else []
        return self._chance(self._kinds[0]) if match else 0.0

    @property
    def predicted_chance(self) -> float:
        """How likely a token is right that is predicted, before it is known how probable that finds it."""
        return self._chance(_PREDICTED)

    def chance_of(self, probability: float) -> float:
        """How likely a token is right that is predicted and found so probable."""
        return self._chance(_kind_of(probability))

    @property
    def follows(self) -> bool:
        """Whether it has gone on as something else did for so long that this is no chance; or nothing was looked up."""
        return self.lookup is not None and (self.lookup.new or self.lookup.length >= _LENGTHS[1])

    def chances(self, most: int, predicted: Prediction | None) -> list[float]:
        """How likely each of the next tokens is guessed right, with those before it, of at most so many; none where
        nothing is to be guessed. Learns from what was said last first."""
        matched = self.looked_up(most)
        self._predicted, self._said, found = None, [], matched
        if matched and self.lookup:
            self._said.append([*zip(self._kinds, self.lookup.guesses(1), strict=False)])
        if predicted and predicted.place == self._end:
            kinds = [_kind_of(each) for each in predicted.probabilities[:most]]
            likely = list(accumulate(map(self._chance, kinds), mul))
            agrees = bool(matched) and self._said[0][0][1] == predicted.token_ids[0]
            # Of two that say the same next, the one that is likelier to be right behind it.
            after = [self._chance(self._kinds[1]), self._chance(kinds[1]) if len(kinds) > 1 else 0.0] if agrees else []
            if (after[0] < after[1]) if agrees else (not matched or likely[0] > matched[0]):
                self._predicted, found = predicted.token_ids[: len(kinds)], likely
            if agrees:
                surer = max(matched[0], likely[0]) / found[0]
                found = [chance * surer for chance in found]
            self._said.append(list(zip(kinds, predicted.token_ids, strict=False)))
            self._said.append([(_PREDICTED, token_id) for token_id in predicted.token_ids])
        return found

    def looked_up(self, most: int) -> list[float]:
        """The same if nothing were predicted."""
        self.match_chance()
        return [*accumulate(map(self._chance, self._kinds[:most]), mul)]

    def guess(self, count: int) -> list[int]:
        """The next tokens, to be computed."""
        if self._predicted is not None:
            return self._predicted[:count]
        assert self.lookup and self._said
        guesses = self.lookup.guesses(count)
        self._said[0] = [*zip(self._kinds, guesses, strict=False)]
        return guesses

    def _chance(self, kind: int) -> float:
        return min(SURE, self._chances[kind])

    def _learn(self) -> None:
        """Whether what was said came true."""
        if self._end == len(self._tokens):
            return
        new = self._tokens[self._end :]
        for said in self._said:
            for token_id, (kind, guess) in zip(new, said, strict=False):
                right = float(token_id == guess)
                for chances, weight in ((self._chances, _WEIGHT), (self._lasting, _LASTING_WEIGHT)):
                    chances[kind] += weight * (right - chances[kind])
                if not right:
                    break
        self._end, self._said = len(self._tokens), []


def _kind_of(probability: float) -> int:
    """That of a predicted token."""
    return _KINDS_OF_MATCHES + sum(probability >= each for each in _PROBABILITIES)
