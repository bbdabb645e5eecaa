"""The arithmetic of benchmarks/fairness.py, and its cases; what it measures is not tested."""

from __future__ import annotations

import pytest

from benchmarks import fairness, hostile
from benchmarks.bystander import Noticed, percentile


def row(worst: float = 0.02, health: float = 0.01, alive: bool = True, **more: int) -> fairness.Row:
    before = Noticed(p99=0.01)
    during = Noticed(worst=worst, health=health, newcomers=2, problems=more)
    return fairness.Row("a", 7, {"200": 2, "left": 1}, 1.5, before, during, [1, 2, 3, 0], alive)


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile([1.5], 0.99) == 1.5


def test_a_server_is_fair_if_nobody_waits_longer_than_for_a_plain_prompt() -> None:
    assert row().fair(0) and row(worst=0.03).fair(0)
    assert not row(worst=0.031).fair(0) and row(worst=0.031).fair(0.05) and not row(worst=0.06).fair(0.05)
    assert not row(health=0.11).fair(1)
    assert not row(alive=False).fair(1)
    assert not row(**{"newcomer 429": 1}).fair(1)
    assert row(**{"health 503": 1}).fair(1)


def test_a_row_has_a_cell_for_each_column() -> None:
    cells = row(**{"newcomer 429": 3}).cells(0)
    assert len(cells) == len(fairness.HEAD)
    assert cells[:3] == ["a", "7", "200 (2), left"]
    assert cells[4:6] == ["20.0", "2.0"]
    assert "3 x newcomer 429" in cells and cells[-1] == "no"


def test_cases_are_chosen_by_words() -> None:
    names = [case.name for case in hostile.CASES]
    assert len(set(names)) == len(names)
    found = fairness.chosen("tokenize,unread", "both")
    assert {case.name for case, _ in found} == {name for name in names if "tokenize" in name or "unread" in name}
    assert len(found) == 2 * len(fairness.chosen("tokenize,unread", "large"))


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: case.name)
def test_cases_grow(case: hostile.Case) -> None:
    assert 0 < case.sizes[0] < case.sizes[1]
