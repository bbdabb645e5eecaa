"""How likely what may follow a sequence is right."""

from __future__ import annotations

from array import array

from sophserve.worker.lookup import Lookup

# Lengths of matches that are told apart: the longer one is, the more likely it goes on.
_LENGTHS = (4, 8, 16)
FIRST_CHANCES = (0.4, 0.6, 0.8, 0.9)
"""Of guesses to be right, by the length of the match, until more is known."""
# How much one more guess counts for the chances of its sequence, and for those that later ones begin with.
_WEIGHT, _LASTING_WEIGHT = 0.12, 0.02
SURE = 0.98
"""No guess is surer than this."""


class Follower:
    """A sequence, whose tokens grow, with the lookup of what may follow it, and how often that was right, by the length
    of the match. lasting: the chances that sequences begin with, which follow those of all."""

    def __init__(self, tokens: array[int], lookup: Lookup, lasting: list[float]) -> None:
        self.lookup = lookup
        self._tokens = tokens
        self._chances = lasting.copy()
        self._lasting = lasting
        self._end = len(tokens)
        self._kind = 0
        self._guesses: list[int] = []

    def chance(self) -> float:
        """How likely a guess of the next token is right; 0 where there is none. Learns from the last guesses first."""
        new = self._tokens[self._end :]
        for token_id, guess in zip(new, self._guesses, strict=False):
            right = float(token_id == guess)
            for chances, weight in ((self._chances, _WEIGHT), (self._lasting, _LASTING_WEIGHT)):
                chances[self._kind] += weight * (right - chances[self._kind])
            if not right:
                break
        self._end = len(self._tokens)
        match = self.lookup.match()
        if match is None:
            self._guesses = []
            return 0.0
        self._kind = sum(match.length >= length for length in _LENGTHS)
        self._guesses = self.lookup.guesses(1)  # is learnt from even if it is not computed
        return min(SURE, self._chances[self._kind])

    def guess(self, count: int) -> list[int]:
        """The next tokens, to be computed."""
        self._guesses = self.lookup.guesses(count)
        return self._guesses
