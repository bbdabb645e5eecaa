"""How likely what may follow a sequence is right."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from sophserve.worker.lookup import Lookup

# What is told apart, as more or less likely to be right: how long the match is that goes on, and how probable the
# model's layer for further tokens found what it predicts.
_LENGTHS = (4, 8, 16)
_PROBABILITIES = (0.3, 0.6, 0.85)
_KINDS_OF_MATCHES = len(_LENGTHS) + 1
FIRST_CHANCES = (0.4, 0.6, 0.8, 0.9, 0.2, 0.45, 0.7, 0.9)
"""Of guesses to be right, by the length of the match and then by the probability, until more is known."""
# How much one more guess counts for the chances of its sequence, and for those that later ones begin with.
_WEIGHT, _LASTING_WEIGHT = 0.12, 0.02
SURE = 0.98
"""No guess is surer than this."""


class Prediction(NamedTuple):
    """What the model's layer for further tokens says of the token at a place of a sequence, and how probable it is."""

    place: int
    token_id: int
    probability: float


class Follower:
    """A sequence, whose tokens grow, with what may follow it, and how often that was right, by its kind. lookup: None
    where nothing is looked up. lasting: the chances that sequences begin with, which follow those of all."""

    def __init__(self, tokens: array[int], lookup: Lookup | None, lasting: list[float]) -> None:
        self.lookup = lookup
        self._tokens = tokens
        self._chances = lasting.copy()
        self._lasting = lasting
        self._end = len(tokens)
        # What was said to come from there on, with its kind, whether that is computed or not; and what is guessed.
        self._said: list[tuple[int, list[int]]] = []
        self._predicted: int | None = None
        self._match_chance = 0.0

    def chances(self, most: int, predicted: Prediction | None) -> list[float]:
        """How likely each of the next tokens is guessed right, with those before it, of at most so many; none where
        nothing is to be guessed. Learns from what was said last first."""
        self._learn()
        self._predicted, chance, further = None, 0.0, 0.0
        match = self.lookup.match() if self.lookup else None
        if self.lookup and match:
            kind = sum(match.length >= length for length in _LENGTHS)
            self._said.append((kind, self.lookup.guesses(1)))
            chance = further = min(SURE, self._chances[kind])
        self._match_chance = further
        if predicted and predicted.place == self._end:
            kind = _KINDS_OF_MATCHES + sum(predicted.probability >= each for each in _PROBABILITIES)
            likely = min(SURE, self._chances[kind])
            if match and self._said[0][1] == [predicted.token_id]:
                chance = max(chance, likely)
            elif likely > chance:
                self._predicted, chance, further = predicted.token_id, likely, 0.0
            self._said.append((kind, [predicted.token_id]))
        return [chance * further**place for place in range(most if further else 1)] if chance else []

    def looked_up(self, most: int) -> list[float]:
        """The same if nothing were predicted."""
        return [self._match_chance**count for count in range(1, most + 1)] if self._match_chance else []

    def guess(self, count: int) -> list[int]:
        """The next tokens, to be computed."""
        if self._predicted is not None:
            return [self._predicted]
        assert self.lookup and self._said
        kind, _ = self._said[0]
        self._said[0] = kind, self.lookup.guesses(count)
        return self._said[0][1]

    def _learn(self) -> None:
        """Whether what was said came true."""
        new = self._tokens[self._end :]
        for kind, said in self._said:
            for token_id, guess in zip(new, said, strict=False):
                right = float(token_id == guess)
                for chances, weight in ((self._chances, _WEIGHT), (self._lasting, _LASTING_WEIGHT)):
                    chances[kind] += weight * (right - chances[kind])
                if not right:
                    break
        self._end, self._said = len(self._tokens), []
