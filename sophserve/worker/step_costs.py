"""How long a step takes by its rows, learnt while steps run, and how many guesses that makes worth their time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

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


class StepCosts:
    """Seconds by rows: a line between what was measured, and beyond it."""

    def __init__(self) -> None:
        self._measured: dict[int, list[float]] = {}  # by size: rows, seconds, and when
        self._points: list[tuple[float, float]] = []
        self._steps = 0

    def add(self, rows: int, seconds: float) -> None:
        """Take note of a step."""
        self._steps += 1
        coarse = max(0, rows.bit_length() - _DIGITS)
        size = rows >> coarse << coarse
        found = self._measured.setdefault(size, [rows, seconds, 0])
        found[0] += _WEIGHT * (rows - found[0])
        found[1] += _WEIGHT * (min(seconds, _MOST * found[1]) - found[1])
        found[2] = self._steps
        if self._steps % _KEPT == 0:
            self._measured = {size: each for size, each in self._measured.items() if each[2] > self._steps - _KEPT}
        self._points = sorted((rows, seconds) for rows, seconds, _ in self._measured.values())

    def seconds(self, rows: float) -> float:
        """Of a step of so many rows."""
        points = self._points
        if not points:
            return 1 + _GUESS * (rows - 1)
        place = bisect_left(points, (rows, 0.0))
        if place < len(points) and points[place][0] == rows:
            return points[place][1]
        if len(points) == 1:
            known, seconds = points[0]
            return seconds * (1 + _GUESS * (rows - 1)) / (1 + _GUESS * (known - 1))
        place = max(1, min(place, len(points) - 1))
        (before, low), (behind, high) = points[place - 1 : place + 1]
        slope = max(0.0, (high - low) / (behind - before))
        return max(low + slope * (rows - before), 0.1 * low)

    def worth(self, rows: int, tokens: float, chances: Sequence[float]) -> int:
        """How many further rows a step of `rows` rows, which gives `tokens` tokens, should have. chances: of each of
        them to give one more, falling."""
        best, count = MARGIN * tokens / self.seconds(rows), 0
        for place, chance in enumerate(chances, 1):
            tokens += chance
            rate = tokens / self.seconds(rows + place)
            if rate > best:
                best, count = rate, place
        return count
