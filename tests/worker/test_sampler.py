"""From requests to the device's sampling parameters, and from its results to messages."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from device.reference import ReferenceOps
from device.sample_params import SampleParams
from sophserve.engine.output import PromptLogprobTable
from sophserve.engine.request import Request
from sophserve.link.messages import SampledTokens, TokenLogprob
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.worker.batch import RequestState, Sampled
from sophserve.worker.penalties import PenaltyState
from sophserve.worker.sampler import holding, joined, prompt_logprobs, rows_of, sampled_tokens
from sophserve.worker.sampler import sample_params as params_of_rows

VOCAB = 5000


def state(
    prompt: list[int],
    output: tuple[int, ...] = (),
    ends: tuple[int, ...] = (),
    bad_words: tuple[list[int], ...] = (),
    **options: Any,
) -> RequestState:
    """As the worker holds it once the message has come."""
    params = SamplingParams(max_tokens=50, **options)
    request = Request(1, prompt, params, 0, 50, list(ends), list(bad_words), output=list(output))
    return RequestState(request.for_worker(), VOCAB)


def sample_params(states: list[RequestState]) -> SampleParams:
    return params_of_rows([row for each in states for row in rows_of(Sampled(each))], VOCAB)


def allowed(mask: torch.Tensor) -> set[int]:
    return {int(word) * 32 + bit for word in mask.nonzero()[:, 0] for bit in range(32) if int(mask[word]) >> bit & 1}


def fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_allowed_tokens_become_a_mask_once() -> None:
    ids = random.Random(0).sample(range(VOCAB), 4000)
    few, many = state([1], allowed_token_ids=[31, 32, 4999, 31]), state([1], allowed_token_ids=ids * 20)
    params = sample_params([few, state([1]), many])
    assert params.mask is not None
    assert allowed(params.mask[0]) == {31, 32, 4999}
    assert allowed(params.mask[1]) == set(range(VOCAB)) and allowed(params.mask[2]) == set(ids)
    # Afterwards it costs the same however many there are.
    costs = [fastest(lambda each=each: sample_params([each] * 8)) for each in (few, many)]
    assert costs[1] < 10 * costs[0]


def test_biases_and_bans() -> None:
    biased = state([1], ends=(7,), min_tokens=2, logit_bias={3: 1.5, 7: 2.0})
    done = state([1], output=(8, 9), ends=(7,), min_tokens=2)
    params = sample_params([state([1]), biased, done])
    assert params.bias_rows is not None and params.bias_ids is not None and params.bias_values is not None
    assert params.bias_rows.tolist() == [1, 1, 1] and params.bias_ids.tolist() == [3, 7, 7]
    assert params.bias_values.tolist() == [1.5, 2.0, float("-inf")]
    # A row with a grammar keeps its bias; the grammar's mask holds what is banned.
    grammar = params_of_rows([*rows_of(Sampled(biased), [bytes(-(-VOCAB // 32) * 4)])], VOCAB)
    assert grammar.bias_ids is not None and grammar.bias_ids.tolist() == [3, 7]
    assert sample_params([done]).bias_ids is None


def test_ends_are_never_chosen_where_a_grammar_is_to_go_on() -> None:
    rules = state(
        [1], ends=(7, 8), stop_token_ids=[8], ignore_eos=True, structured=StructuredOutput("json_object")
    ).rules
    assert rules.banned().tolist() == [7]


def test_bad_words() -> None:
    words: list[list[int]] = [[5], [1, 2, 3], [2, 9], [2, 2, 4], [1, 2, 1, 2, 6]]
    generator = random.Random(0)
    prompt = [1, 2]
    one = state(prompt, bad_words=tuple(words))
    output: list[int] = []
    for _ in range(300):
        expected = {word[-1] for word in words if output[len(output) - len(word) + 1 :] == word[:-1]}
        assert set(one.rules.banned()) == expected
        # One that comes back goes on where it was.
        assert set(state(prompt, output=tuple(output), bad_words=tuple(words)).rules.banned()) == expected
        output.append(generator.choice((1, 1, 2, 2, 7)))
        one.extend(output[-1:])


def test_several_tokens_count_as_if_they_came_one_by_one() -> None:
    options: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "min_tokens": 4}
    together, alone = (state([1, 2], ends=(9,), bad_words=([5, 6, 7],), **options) for _ in range(2))
    together.extend([3, 5, 6])
    for token in (3, 5, 6):
        alone.extend([token])
    assert together.tokens == alone.tokens and set(together.rules.banned()) == {7, 9}
    first, second = (sample_params([one]) for one in (together, alone))
    for name, value in vars(first).items():
        assert (
            torch.equal(value, vars(second)[name]) if isinstance(value, torch.Tensor) else value == vars(second)[name]
        )


def test_rows_behind_drafts_are_those_of_a_request_that_has_them() -> None:
    """With whatever looks at earlier tokens: each row's parameters are what they would be without drafts."""
    options: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "min_tokens": 4, "seed": 3}
    options |= {"logit_bias": {8: 1.0}, "allowed_token_ids": list(range(9)), "logprobs": 2}
    words = ([5, 6, 7], [6, 6], [2, 3])
    drafts = [3, 5, 6, 6, 1]
    for wanted in (options, {"temperature": 0.0}, {"presence_penalty": 1.0}):
        guessed = state([1, 2], (2,), ends=(4,), bad_words=words, **wanted)
        rows = [*rows_of(Sampled(guessed, drafts))]
        assert len(rows) == len(drafts) + 1
        alone = []
        for count in range(len(drafts) + 1):
            each = state([1, 2], (2, *drafts[:count]), ends=(4,), bad_words=words, **wanted)
            alone.append(vars(sample_params([each])))
        mine = [vars(params_of_rows([row], VOCAB)) for row in rows]
        for one, other in zip(mine, alone, strict=True):
            for name, value in one.items():
                same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
                assert same, name
        # And together as each alone.
        both = params_of_rows(rows, VOCAB)
        assert both.positions.tolist() == [3, 4, 5, 6, 7, 8] and guessed.tokens.tolist() == [1, 2, 2]


def test_rows_end_where_nothing_can_be_chosen() -> None:
    free = state([1], bad_words=([5, 6], [5, 7]), allowed_token_ids=[5, 6, 7])
    assert len([*rows_of(Sampled(free, [5, 5, 5]))]) == 4
    stuck = state([1], bad_words=([6, 6],), allowed_token_ids=[6])
    assert len([*rows_of(Sampled(stuck, [6, 6]))]) == 1  # the next step says why
    stuck.extend([6])
    [row] = rows_of(Sampled(stuck, [6, 6]))
    assert row.error and "bad_words" in row.error
    masks = [b"\xff" * (-(-VOCAB // 32) * 4)] * 2
    assert [row.mask for row in rows_of(Sampled(state([1]), [3, 4, 5]), masks)] == masks


def test_what_holds_of_drafts() -> None:
    for chosen, drafts, held in (
        ([7], [], [7]),
        ([7, 8, 9], [7, 8], [7, 8, 9]),
        ([7, 1, 9], [7, 8], [7, 1]),
        ([1, 8, 9], [7, 8], [1]),
        ([-1, 8, 9], [7, 8], []),
        ([7, -1, -1], [7, 8], [7]),
    ):
        assert holding(chosen, drafts) == held
    parts = [SampledTokens(3, [token], [[TokenLogprob(token, -1.0, 1)]]) for token in (5, 6)]
    together = joined(3, parts)
    assert together.tokens == [5, 6] and [entry[0].token_id for entry in together.logprobs or []] == [5, 6]


def test_a_step_does_not_look_at_every_bad_word() -> None:
    words = [[100 + index, 1] for index in range(4000)]
    few, many = state([1], output=(2,), bad_words=(words[0],)), state([1], output=(2,), bad_words=tuple(words))
    assert fastest(lambda: sample_params([many] * 8)) < 10 * fastest(lambda: sample_params([few] * 8))


def test_penalties_count_what_occurred() -> None:
    penalties = PenaltyState(array("i", [5, 3, 5, 9, 3, 3]), 3)
    for token in (7, 5, 7):
        penalties.add_output(token)
    ids, counts = penalties.entries()
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {5: 1, 3: 2, 9: 1, 7: 2}


def test_logprobs_of_tokens_that_were_sampled() -> None:
    logits = torch.randn(3, VOCAB)
    states = [state([1], temperature=0, logprobs=count) for count in (None, 0, 3)]
    result = ReferenceOps().sample(logits, sample_params(states))
    none, chosen, three = sampled_tokens(result, [row for each in states for row in rows_of(Sampled(each))])
    assert none.logprobs is None and chosen.logprobs is not None and three.logprobs is not None
    ranks = [[[entry.rank for entry in token] for token in given.logprobs] for given in (chosen, three)]
    assert ranks == [[[1]], [[1, 1, 2, 3]]]
    expected = logits[2].log_softmax(-1).topk(3)
    assert [entry.token_id for entry in three.logprobs[0][1:]] == expected.indices.tolist()
    assert torch.allclose(torch.tensor([entry.logprob for entry in three.logprobs[0][1:]]), expected.values)


def test_logprobs_of_prompts_survive_their_way_and_any_cut() -> None:
    ops, prompt = ReferenceOps(), [3, 31, 4999, 64, 2]
    logits = torch.randn(len(prompt) - 1, VOCAB)
    tables = [PromptLogprobTable(len(prompt)) for _ in range(2)]
    for table, cuts in zip(tables, ([0, 4], [0, 1, 3, 4]), strict=True):
        assert list(table) == [None] * len(prompt)
        for start, end in pairwise(cuts):
            table.add(start + 1, 2, *prompt_logprobs(ops, logits[start:end], prompt[start + 1 : end + 1], 2))
    assert list(tables[0]) == list(tables[1]) and len(tables[0]) == len(prompt) and tables[0][0] is None
    for token, row, entries in zip(prompt[1:], logits.log_softmax(-1), tables[0][1:], strict=True):
        assert entries is not None
        top = row.topk(2).indices.tolist()
        assert [entry.token_id for entry in entries] == [token, *top]
        assert [entry.rank for entry in entries] == [1 + int((row > row[token]).sum()), 1, 2]
        assert torch.allclose(torch.tensor([entry.logprob for entry in entries]), row[[token, *top]])
