"""How long a step takes by its rows, learnt while steps run, and how many guesses that makes worth their time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter

# Binary digits by which sizes are told apart: all up to 32, larger ones by a sixteenth of their size.
_DIGITS = 5
# What a new measurement counts for, and how much longer than expected it can say at most: others use the machine, too.
_WEIGHT, _MOST = 0.25, 2.0
# Until it is known, a row beyond the first one takes so much of the time of a step: weights are read once.
_GUESS = 0.1
# Steps after which an old measurement is tried again.
_KEPT = 512
# What guesses must be expected to gain, of the time of a step.
MARGIN = 1.02
_rows = itemgetter(0)
# How much a step counts for what something gains; after how many it is judged, and how long it then rests.
_GAIN_WEIGHT, _TRIAL, _PAUSE = 1 / 16, 32, 2048


class StepCosts:
    """Seconds by rows: a line between what was measured, and beyond it."""

    def __init__(self) -> None:
        self._measured: dict[int, list[float]] = {}  # by size: rows, seconds, and when
        self._points: list[list[float]] = []  # the same, by rows
        self._steps = 0

    def add(self, rows: int, seconds: float) -> None:
        """Take note of a step."""
        self._steps += 1
        coarse = max(0, rows.bit_length() - _DIGITS)
        size = rows >> coarse << coarse
        if (found := self._measured.get(size)) is None:
            found = self._measured[size] = [rows, seconds, self._steps]
            self._points = sorted(self._measured.values())
        found[0] += _WEIGHT * (rows - found[0])
        found[1] += _WEIGHT * (min(seconds, _MOST * found[1]) - found[1])
        found[2] = self._steps
        if self._steps % _KEPT == 0:
            self._measured = {size: each for size, each in self._measured.items() if each[2] > self._steps - _KEPT}
            self._points = sorted(self._measured.values())

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._points)

    def seconds(self, rows: float) -> float:
        """Of a step of so many rows."""
        points = self._points
        if not points:
            return 1 + _GUESS * (rows - 1)
        place = bisect_left(points, rows, key=_rows)
        if place < len(points) and points[place][0] == rows:
            return points[place][1]
        if len(points) == 1:
            known, seconds, _ = points[0]
            return seconds * (1 + _GUESS * (rows - 1)) / (1 + _GUESS * (known - 1))
        place = max(1, min(place, len(points) - 1))
        (before, low, _), (behind, high, _) = points[place - 1 : place + 1]
        slope = max(0.0, (high - low) / (behind - before))
        return max(low + slope * (rows - before), 0.1 * low)

    def worth(self, rows: int, tokens: float, chances: Sequence[float], beside: float = 0.0) -> int:
        """How many further rows a step of `rows` rows, which gives `tokens` tokens, should have. chances: of each of
        them to give one more, falling. beside: seconds that a step takes on top."""
        if not chances:
            return 0
        best, count = MARGIN * tokens / (self.seconds(rows) + beside), 0
        for place, chance in enumerate(chances, 1):
            tokens += chance
            rate = tokens / (self.seconds(rows + place) + beside)
            if rate > best:
                best, count = rate, place
        return count

    def rate(self, rows: int, tokens: float, chances: Sequence[float], beside: float = 0.0) -> float:
        """Tokens a second with so many further rows."""
        count = self.worth(rows, tokens, chances, beside)
        return (tokens + sum(chances[:count])) / (self.seconds(rows + count) + beside)


class Gate:
    """Whether something pays that takes time in every step: open at first and as long as it does, and for a trial after
    every pause."""

    def __init__(self) -> None:
        self.open = True
        self._gain, self._steps = 1.0, 0

    def learn(self, gain: float | None) -> None:
        """gain: how many times as fast a step is with it as without; None for a step that has nothing of it."""
        if self.open and gain is None:
            return
        self._steps += 1
        if self.open:
            self._gain += _GAIN_WEIGHT * ((gain or 0.0) - self._gain)
        if (self._gain < 1 and self._steps >= _TRIAL) if self.open else self._steps >= _PAUSE:
            self.open = not self.open
            self._gain, self._steps = 1.0, 0
