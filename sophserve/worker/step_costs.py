"""How long a step takes by its rows, learnt while steps run, and how many guesses that makes worth their time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter

# Binary digits by which sizes are told apart: all up to 32, larger ones by a sixteenth of their size.
_DIGITS = 5
# What a new measurement counts for how fast the machine is now, which others use, too, and how much longer than
# expected it can say at most.
_WEIGHT, _MOST = 0.25, 2.0
# What it counts for the size itself, at least: where steps tell how fast the machine is, and where others do, which are
# steps with guesses until there are only such.
_SIZE_WEIGHT, _GUESSED_WEIGHT, _MANY = 1 / 64, 1 / 16, 32
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
    """Seconds by rows: a line between what was measured, and beyond it.

    Sizes are measured at different times, and others use the machine, too: what is compared are the times of each size
    at the same pace, which steps without guesses tell as long as there are some."""

    def __init__(self) -> None:
        # By size: rows, seconds at pace 1, when it was measured last, and how often.
        self._measured: dict[int, list[float]] = {}
        self._points: list[list[float]] = []  # the same, by rows
        self._pace = 1.0  # how many times as long steps take now
        self._steps, self._guessed = 0, 0  # the latter: without one that has none

    def add(self, rows: int, seconds: float, guessed: bool = False) -> None:
        """Take note of a step. guessed: whether some of the rows are guesses."""
        self._steps += 1
        self._guessed = self._guessed + 1 if guessed else 0
        coarse = max(0, rows.bit_length() - _DIGITS)
        size = rows >> coarse << coarse
        if (found := self._measured.get(size)) is None:
            found = self._measured[size] = [rows, seconds / self._pace, self._steps, 0]
            self._points = sorted(self._measured.values())
        seconds = min(seconds, _MOST * self._pace * found[1])
        found[0] += _WEIGHT * (rows - found[0])
        found[2] = self._steps
        found[3] += 1
        telling = not 0 < self._guessed < _MANY
        pace, weight = seconds / found[1], max(_SIZE_WEIGHT if telling else _GUESSED_WEIGHT, 1 / found[3])
        found[1] += weight * (seconds / self._pace - found[1])
        if telling:
            self._pace += _WEIGHT * (pace - self._pace)
        if self._steps % _KEPT == 0:
            self._measured = {size: each for size, each in self._measured.items() if each[2] > self._steps - _KEPT}
            self._points = sorted(self._measured.values())

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._points)

    def seconds(self, rows: float) -> float:
        """Of a step of so many rows."""
        return self._pace * self._at_pace_1(rows)

    def _at_pace_1(self, rows: float) -> float:
        points = self._points
        if not points:
            return 1 + _GUESS * (rows - 1)
        place = bisect_left(points, rows, key=_rows)
        if place < len(points) and points[place][0] == rows:
            return points[place][1]
        if len(points) == 1:
            known, seconds = points[0][:2]
            return seconds * (1 + _GUESS * (rows - 1)) / (1 + _GUESS * (known - 1))
        place = max(1, min(place, len(points) - 1))
        (before, low, *_), (behind, high, *_) = points[place - 1 : place + 1]
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
            seconds = self.seconds(rows + place) + beside
            if tokens > best * seconds:
                best, count = tokens / seconds, place
            elif tokens + chance * (len(chances) - place) <= best * seconds:
                break  # not even if further rows took no time
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
