"""What may follow a sequence, against a search through all that was said."""

from __future__ import annotations

import random
import time
from array import array
from collections import deque
from types import SimpleNamespace

import pytest

from sophserve.config import EngineConfig
from sophserve.link.messages import AddedRequest, ScheduledRequest, StepPlan
from sophserve.sampling import SamplingParams
from sophserve.worker.batch import RequestState
from sophserve.worker.lookup import FEWEST_SLOTS, HALF_TOKENS, MOST_OWNERS, History, Lookup, NgramIndex, ngram_hash
from sophserve.worker.speculation import Speculation
from sophserve.worker.step_costs import StepCosts


def newest(tokens: list[int], tail: list[int], sizes: tuple[int, ...]) -> int:
    for size in sizes:
        for place in range(len(tokens) - 1, size - 1, -1):
            if len(tail) >= size and tokens[place - size : place] == tail[-size:]:
                return place
    return 0


def hashes(tail: array[int], sizes: tuple[int, ...]) -> list[int]:
    return [ngram_hash(tail[-size:]) for size in sizes]


@pytest.mark.parametrize("sizes", [(8, 3), (2,), (1,), (16, 1)])
def test_the_newest_place_of_an_n_gram(sizes: tuple[int, ...]) -> None:
    """However the tokens come: one by one, or many at once."""
    chance = random.Random(1)
    for _ in range(20):
        tokens = array("i")
        index = NgramIndex(tokens, sizes, 1 << 14)  # so many slots that no n-grams share one
        while len(tokens) < 600:
            tokens.extend(chance.choices([3, 4, 150_000], k=chance.choice([1, 2, 300])))
            index.catch_up()
            tail = tokens[-chance.randint(1, 30) :]
            assert index.find(tail, hashes(tail, sizes)) == newest(tokens.tolist(), tail.tolist(), sizes)


def test_an_index_is_of_fixed_size_and_forgets_the_oldest() -> None:
    chance = random.Random(2)
    tokens = array("i", [chance.randrange(100_000) for _ in range(20_000)])
    index = NgramIndex(tokens, (3,), 1)
    index.catch_up()
    assert [len(table) for _, table in index._tables] == [FEWEST_SLOTS]
    grams = {place: tokens[place - 3 : place] for place in range(10, 20_000)}
    found = [index.find(gram, hashes(gram, (3,))) == place for place, gram in grams.items()]
    assert sum(found[-50:]) > 40 and not any(found[:10_000])


def lookup(tokens: array[int], *history: array[int], prediction: tuple[int, ...] = ()) -> Lookup:
    indexes = [NgramIndex(answer, (8, 3), 0) for answer in history]
    for index in indexes:
        index.catch_up()
    return Lookup(tokens, (8, 3), array("i", prediction), len(tokens), deque(indexes))


def test_guesses_go_on_as_what_was_found() -> None:
    tokens = array("i", [1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    one = lookup(tokens)
    match = one.match()
    assert match and match.length == 3 and one.guesses(4) == [4, 5, 6, 9] and one.guesses(1) == [4]
    tokens.extend([4, 5])
    match = one.match()
    assert match and match.length == 5 and one.guesses(3) == [6, 9, 1]
    tokens.append(7)
    assert one.match() is None and one.guesses(3) == []
    # What repeats itself goes on doing so.
    repeated = lookup(array("i", [8, 5, 6, 5, 6, 5]))
    assert repeated.match() and repeated.guesses(5) == [6, 5, 6, 5, 6]


def test_the_longest_match_is_taken_of_several_sources() -> None:
    tokens = array("i", [1, 2, 3, 7, 5, 1, 2, 3])
    one = lookup(tokens, array("i", [9, 5, 1, 2, 3, 8, 8]), array("i", [0, 1, 2, 3, 6, 6]))
    assert one.match() and one.guesses(2) == [8, 8]
    tokens.extend([8, 8])  # there it ends
    assert one.match() is None
    tokens.extend([1, 2, 3])
    assert one.match() and one.guesses(1) == [8]  # the newest place


def test_a_prediction_is_found_from_the_first_token_on() -> None:
    tokens = array("i", [5, 6, 7])
    one = lookup(tokens, prediction=(1, 2, 3, 4, 5))
    assert one.match() and one.guesses(9) == [1, 2, 3, 4, 5]
    tokens.extend([1, 9, 2, 3, 4])
    assert one.match() and one.guesses(9) == [5]


def test_a_match_goes_on_behind_tokens_that_were_others() -> None:
    """Although what stands there stands further on, too."""
    said = [*range(10, 20), 1, 2, 3, *range(30, 40), 1, 2, 3, 50]
    tokens = array("i", [5, 6, 7])
    one = lookup(tokens, prediction=tuple(said))
    assert one.match() and one.guesses(2) == [10, 11]
    for token_id in [*range(10, 20), 99]:
        tokens.append(token_id)
        match = one.match()
    assert match is None and one.length > 8
    for token_id in [2, 3]:
        tokens.append(token_id)
        match = one.match()
    assert match and match.length >= 2 and one.guesses(3) == [30, 31, 32]
    tokens.extend([30, 31, 70, 71, 72, 35, 36])
    assert one.match() and one.guesses(3) == [37, 38, 39]
    tokens.extend([37, 60])  # a token less: it is found again as anything is
    assert one.match() is None
    tokens.extend([1, 2, 3])
    assert one.match() and one.guesses(1) == [50]
    tokens.extend(range(100, 120))
    assert one.match() is None and one.length == 0


def test_answers_are_kept_by_owner_and_only_so_many() -> None:
    history = History((3,))
    for number in range(MOST_OWNERS + 5):
        history.add(b"%d" % number, array("i", range(100)))
    assert not history.of(b"0") and len(history.of(b"60")) == 1
    for start in range(0, 5 * HALF_TOKENS, 1000):
        history.add(b"me", array("i", range(start, start + 1000)))
    halves = history.of(b"me")
    assert len(halves) == 2 and all(len(half.tokens) <= HALF_TOKENS for half in halves)
    assert halves[-1].tokens[-1] == 5 * HALF_TOKENS // 1000 * 1000 + 999
    history.add(b"me", array("i", range(10 * HALF_TOKENS)))
    assert len(halves[-1].tokens) == HALF_TOKENS and halves[-1].tokens[-1] == 10 * HALF_TOKENS - 1


def costs(*seconds: float) -> StepCosts:
    found = StepCosts()
    for _ in range(30):
        for rows, each in enumerate(seconds, 1):
            found.add(rows, each)
    return found


def test_guesses_that_pay() -> None:
    cheap, dear = costs(1, 1.1, 1.2, 1.3, 1.4), costs(1, 2, 3, 4, 5)
    sure, doubtful = [0.98**count for count in range(1, 5)], [0.05**count for count in range(1, 5)]
    assert cheap.worth(1, 1, sure) == 4 and cheap.worth(1, 1, doubtful) == 0
    assert dear.worth(1, 1, sure) == 0 and cheap.worth(1, 1, []) == 0
    # A row that is dear is not taken, those before it are; one may pay only together with the next.
    assert costs(1, 1.1, 1.2, 9, 9.1).worth(1, 1, sure) == 2
    assert costs(1, 2.1, 2.2, 2.3, 2.4).worth(1, 1, sure) == 4


def test_costs_between_and_beyond_what_was_measured() -> None:
    assert StepCosts().worth(1, 1, [0.9]) == 1  # it is tried
    found = costs(1.0)
    assert found.seconds(1) == 1 and 1 < found.seconds(5) < 2
    for _ in range(30):
        found.add(5, 3.0)
    assert abs(found.seconds(3) - 2) < 1e-9 and abs(found.seconds(9) - 5) < 1e-9
    found.add(5, 1e6)  # something else took the processor
    assert found.seconds(5) < 4
    for _ in range(2000):
        found.add(1, 1.0)
    assert found.seconds(5) < 2  # long ago: worth another try
    for rows in range(1, 3000):
        found.add(rows, 1.0 + rows)
    assert len(found._measured) < 200


def test_all_sizes_take_longer_while_others_use_the_machine() -> None:
    found = costs(1, 2, 3, 4)
    for _ in range(60):
        found.add(1, 1.5)
    assert [found.seconds(rows) for rows in (1, 2, 4)] == pytest.approx([1.5, 3, 6], rel=0.05)
    for _ in range(100):  # one size has changed, which only guesses have
        found.add(1, 1.5)
        found.add(4, 9.0, guessed=True)
    assert [found.seconds(rows) for rows in (1, 2, 4)] == pytest.approx([1.5, 3, 9], rel=0.05)
    for _ in range(40):  # nothing else is left that could tell
        found.add(4, 9.0, guessed=True)
    for _ in range(300):
        found.add(4, 18.0, guessed=True)
    assert found.seconds(4) == pytest.approx(18, rel=0.05) and found.seconds(1) > 2


def test_looking_for_guesses_takes_a_small_part_of_the_steps() -> None:
    """Of sixteen sequences without guesses some are asked in a step, in turn; one that follows something, always."""
    speculation = Speculation(EngineConfig(model="none"), 64, None)
    states = [SimpleNamespace(follower=SimpleNamespace(follows=place == 3), predicted=None) for place in range(16)]

    def asked(seconds: float, steps: int) -> list[list[int]]:
        found = []
        plan = StepPlan(0, [], [], [])
        for _ in range(steps):
            speculation.learn(plan, 16, seconds, 0.0, None)
            found.append([place for place in speculation._places(states) if time.sleep(1e-4) is None])  # type: ignore[arg-type]
        return found

    assert all(sorted(each) == [*range(16)] for each in asked(100.0, 4))
    each = asked(0.02, 40)  # of which 0.1 ms may go by: so long looking for one takes
    assert all(3 in places for places in each)
    assert sum(map(len, each)) <= 40 + 16 + 40
    assert {place for places in each for place in places} == {*range(16)}


def test_steps_without_guesses_rest_as_long_as_looking_took() -> None:
    speculation = Speculation(EngineConfig(model="none"), 64, None)
    tokens, looked = array("i", [5, 6, 7, 8, 5, 6, 7]), []
    added = AddedRequest(0, tokens.tobytes(), len(tokens), len(tokens) - 1, 0, SamplingParams(), [], [])
    states = {0: RequestState(added, 1 << 20)}
    plan = StepPlan(0, [], [], [ScheduledRequest(0, 1, [], 2)])
    assert speculation.propose(plan, states) == {0: [8, 5]}

    def step(token_id: int, seconds: float) -> bool:
        """Whether guesses are looked for."""
        states[0].extend([token_id])
        states[0].computed += 1
        speculation.learn(plan, 1, seconds, 0.0, None)
        before = speculation._steps
        looked.append(speculation.propose(plan, states))
        return speculation._steps > before

    assert all(step(token_id, 10.0) for token_id in range(100, 120))  # of which any is little
    found = [step(token_id, 1e-6) for token_id in range(200, 400)]
    assert 200 // 17 <= sum(found) <= 200 // 15  # as seldom as may be
    assert not any(looked)
    for token_id in [5, 6, 7, 8, 5, 6, 7, 8] * 5:
        step(token_id, 1e-6)
    assert looked[-1] == {0: [5, 6]} and all(looked[-8:])  # once it follows something it is no longer left out


def test_what_the_server_does_between_steps_is_part_of_them() -> None:
    """Unless it waits for requests: the sequences are others then."""
    speculation = Speculation(EngineConfig(model="none"), 64, None)

    def learn(ids: list[int], waited: float) -> None:
        plan = StepPlan(0, [], [], [ScheduledRequest(each, 1, []) for each in ids])
        speculation.learn(plan, len(ids), 1.0, waited, None)

    learn([1], 100.0)
    assert speculation.costs.seconds(1) == 1
    for _ in range(50):
        learn([1], 0.5)
    assert speculation.costs.seconds(1) == pytest.approx(1.5)
    learn([1, 2], 100.0)
    assert speculation.costs.seconds(2) == 1.5
    for _ in range(50):
        learn([2, 1], 0.25)
    assert speculation.costs.seconds(2) == pytest.approx(1.25)


def test_finding_guesses_is_part_of_the_steps_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    speculation = Speculation(EngineConfig(model="none"), 64, None)
    plan = StepPlan(0, [], [], [ScheduledRequest(1, 1, [])])
    guesses = {1: [5]}

    def found(*_: object) -> dict[int, list[int]]:
        time.sleep(0.05)
        return guesses

    monkeypatch.setattr(speculation, "_propose", found)
    for guesses in ({1: [5]}, {1: list[int]()}):
        speculation.propose(plan, {})
        speculation.learn(plan, 1 + len(guesses[1]), 1.0, 0.0, None)
    assert speculation.costs.seconds(1) == 1 and 1.05 <= speculation.costs.seconds(2) < 1.5
