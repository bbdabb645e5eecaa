"""The sampler against plain Python in float64, and the native kernel against the sampler."""

import math
import random

import pytest
import torch

from device import sampling
from device.interface import DenseWeight
from device.reference import ReferenceOps
from device.sample_params import SampleParams

REFERENCE = ReferenceOps()


def kept_by_hand(logits, temperature, top_k, top_p, min_p):
    """The ids that may be drawn, and their probabilities, from a list of logits."""
    order = sorted((i for i in range(len(logits)) if logits[i] > -math.inf), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    weights = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    kept, running = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if kept and top_p < 1 and running >= top_p * math.fsum(weights):
            break
        kept.append((token, weight))
        running += weight
    kept = [(token, weight) for token, weight in kept if weight >= min_p]
    total = math.fsum(weight for _, weight in kept)
    return {token: weight / total for token, weight in kept}


def random_case(generator, vocab):
    spread = generator.choice([0.1, 1.0, 5.0])
    logits = [generator.gauss(0, spread) for _ in range(vocab)]
    if generator.random() < 0.3:
        logits = [float(round(x)) for x in logits]  # many ties
    if generator.random() < 0.3:
        logits = [-math.inf if generator.random() < 0.5 else x for x in logits]
        logits[generator.randrange(vocab)] = 1.0
    # Values that float32 holds exactly, so that all sides read the same numbers.
    return torch.tensor(logits).tolist(), {
        "temperature": generator.choice([0.25, 1.0, 1.5]),
        "top_k": generator.choice([0, 0, 1, 2, 5, 40, 64, 65, 100, vocab, 10 * vocab]),
        "top_p": generator.choice([1.0, 1.0, 0.125, 0.5, 0.90625, 0.9990234375]),
        "min_p": generator.choice([0.0, 0.0, 0.0625, 0.5, 1.0]),
    }


def tensors(case):
    dtypes = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}
    return {name: torch.tensor([case[name]], dtype=dtype) for name, dtype in dtypes.items()}


CASES = [(seed, vocab) for seed in range(60) for vocab in (1, 7, 33, 300)]


def test_kept_sets():
    for seed, vocab in CASES:
        logits, case = random_case(random.Random(seed), vocab)
        given = tensors(case)
        scaled = torch.tensor([logits]).double() / given["temperature"][:, None].double()
        kept = sampling.keep(scaled, given["top_k"], given["top_p"], given["min_p"])
        assert set(kept[0].nonzero()[:, 0].tolist()) == set(kept_by_hand(logits, **case)), (seed, vocab, case)


@pytest.mark.parametrize("device", ["reference", "cmodel"])
def test_draws_invert_the_distribution_in_the_order_of_ids(device, request):
    ops = REFERENCE if device == "reference" else request.getfixturevalue("native").ops
    for seed, vocab in CASES:
        logits, case = random_case(random.Random(seed), vocab)
        probabilities = kept_by_hand(logits, **case)
        rows = 20
        given = {name: value.repeat(rows) for name, value in tensors(case).items()}
        seeds, positions = torch.full((rows,), seed), torch.arange(rows)
        params = SampleParams(seeds=seeds, positions=positions, **given)
        chosen = ops.sample(torch.tensor([logits]).repeat(rows, 1), params).token_ids.tolist()
        for at, uniform in enumerate(sampling.uniform(seeds, positions).tolist()):
            running = 0.0
            for token in sorted(probabilities):
                running += probabilities[token]
                if running > uniform:
                    break
            # A uniform within rounding of a border may fall on either side.
            if abs(running - uniform) > 1e-9 and abs(running - probabilities[token] - uniform) > 1e-9:
                assert chosen[at] == token, (seed, vocab, case)


def chi_squared(counts, expected):
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


@pytest.mark.parametrize("device", ["reference", "cmodel"])
def test_draws_have_the_right_frequencies(device, request, sample_params):
    ops = REFERENCE if device == "reference" else request.getfixturevalue("native").ops
    rows = 40_000
    logits = torch.tensor([1.0, -0.5, 0.25, 2.0, 0.0, -1.0, 1.5])
    for seeds, positions in (
        (torch.zeros(rows, dtype=torch.int64), torch.arange(rows)),
        (torch.arange(rows), torch.zeros(rows, dtype=torch.int64)),
        (torch.arange(rows) * -(2**40), torch.full((rows,), 17)),
    ):
        params = sample_params(rows, seeds=seeds, positions=positions, temperature=torch.full((rows,), 0.5))
        chosen = ops.sample(logits.repeat(rows, 1), params).token_ids
        counts = chosen.bincount(minlength=7).tolist()
        expected = (logits.double() / 0.5).softmax(0) * rows
        # 6 degrees of freedom: 22.5 is exceeded once in a thousand.
        assert chi_squared(counts, expected.tolist()) < 22.5
        # Neighbouring draws are independent of each other: 36 degrees of freedom, 68 once in a thousand.
        pairs = (chosen[0::2] * 7 + chosen[1::2]).bincount(minlength=49).tolist()
        chance = expected / rows
        assert chi_squared(pairs, (chance[:, None] * chance * (rows // 2)).flatten().tolist()) < 85


def test_uniform_numbers_are_splitmix64():
    def mix(bits):
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    gamma = 0x9E3779B97F4A7C15
    pairs = [(0, 0), (1, 0), (0, 1), (-1, 5), (2**63 - 1, 2**40), (-(2**63), 77)]
    expected = [(mix((mix((s + gamma) % 2**64) + p * gamma) % 2**64) >> 11) / 2**53 for s, p in pairs]
    seeds, positions = torch.tensor(pairs).T
    assert sampling.uniform(seeds, positions).tolist() == expected
    assert all(0 <= value < 1 for value in expected)


def test_a_row_depends_on_its_seed_and_position(native, sample_params):
    logits = torch.zeros(3, 1000)
    seeds, positions = torch.tensor([5, 5, 6]), torch.tensor([1, 2, 1])
    for ops in (REFERENCE, native.ops):
        ids = ops.sample(logits, sample_params(3, seeds=seeds, positions=positions)).token_ids
        again = ops.sample(logits[:1], sample_params(1, seeds=seeds[2:], positions=positions[2:])).token_ids
        assert len(set(ids.tolist())) == 3 and again[0] == ids[2]


# --- the other fields, for the reference and for every instruction set ---


def greedy(sample_params, rows, **given):
    return sample_params(rows, temperature=torch.zeros(rows), **given)


def test_greedy_takes_the_lowest_id_among_equals(ops, sample_params):
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-1.0, -1.0, -1.0, -1.0], [0.0, -0.0, 0.0, -5.0]])
    assert ops.sample(logits, greedy(sample_params, 3)).token_ids.tolist() == [1, 0, 0]


def test_top_k_takes_the_lowest_ids_at_its_border(ops, sample_params):
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]]).repeat(500, 1)
    params = sample_params(500, top_k=torch.full((500,), 2, dtype=torch.int32))
    assert set(ops.sample(logits, params).token_ids.tolist()) == {1, 2}


def test_mask(ops, sample_params):
    vocab = 70
    logits = torch.arange(vocab).float().repeat(3, 1)
    allowed = [[3, 31], [32, 64, 5], [69]]
    words = torch.zeros(3, 3, dtype=torch.int64)
    for row, ids in enumerate(allowed):
        for token in ids:
            words[row, token // 32] |= 1 << token % 32
    mask = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    assert ops.sample(logits, greedy(sample_params, 3, mask=mask)).token_ids.tolist() == [31, 64, 69]
    for seed in range(20):
        seeds = torch.full((3,), seed)
        params = sample_params(3, mask=mask, seeds=seeds, temperature=torch.full((3,), 100.0))
        for token, ids in zip(ops.sample(logits, params).token_ids.tolist(), allowed, strict=True):
            assert token in ids


def test_bias_and_penalties(ops, sample_params):
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0], [2.0, -1.0, 0.5, 0.0], [1.0, 1.0, 1.0, 0.0]])
    given = {
        "bias_rows": torch.tensor([1, 1, 0]),
        "bias_ids": torch.tensor([3, 3, 1]),
        "bias_values": torch.tensor([1.25, 1.5, -100.0]),
        "penalty_rows": torch.tensor([2, 0, 0, 2]),
        "penalty_ids": torch.tensor([0, 0, 1, 1]),
        "output_counts": torch.tensor([3, 0, 2, 0], dtype=torch.int32),
        "repetition": torch.tensor([2.0, 9.0, 1.0]),
        "presence": torch.tensor([0.5, 9.0, 0.25]),
        "frequency": torch.tensor([0.25, 9.0, 0.125]),
    }
    params = greedy(sample_params, 3, **given)
    expected = torch.tensor([[1.0, -101.0 * 2 - 1.0, 0.5, 0.0], [2.0, -1.0, 0.5, 2.75], [1.0 - 0.625, 1.0, 1.0, 0.0]])
    assert torch.equal(sampling.adjust(logits, params), expected)
    assert ops.sample(logits, params).token_ids.tolist() == [0, 3, 1]
    assert logits[0, 0] == 2.0, "the caller's logits are left alone"


def test_logprobs_are_those_of_the_model(ops, sample_params, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(5, 333) * 5).to(dtype)
    params = sample_params(
        5,
        num_logprobs=7,
        temperature=torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0]),
        bias_rows=torch.tensor([0, 4]),
        bias_ids=torch.tensor([100, 200]),
        bias_values=torch.tensor([100.0, 50.0]),
    )
    result = ops.sample(logits, params)
    assert result.token_ids[0] == 100 and result.token_ids[4] == 200
    exact = logits.double().log_softmax(-1)
    for row, token in enumerate(result.token_ids.tolist()):
        assert result.logprobs[row].item() == pytest.approx(exact[row, token].item(), abs=3e-6)
        assert result.ranks[row] == 1 + sum(logits[row] > logits[row, token])
        order = sorted(range(333), key=lambda i: (-logits[row, i].item(), i))[:7]
        assert result.top_ids[row].tolist() == order
        torch.testing.assert_close(result.top_logprobs[row], exact[row, order].float(), rtol=0, atol=3e-6)
    none = ops.sample(logits, sample_params(5, num_logprobs=0))
    assert none.top_ids.shape == (5, 0) and none.logprobs.shape == (5,)
    assert ops.sample(logits, sample_params(5)).logprobs is None


@pytest.mark.parametrize("vocab", [3, 16, 100, 5000])
def test_native_choices_equal_the_reference(cmodel, sample_params, vocab):
    torch.manual_seed(vocab)
    rows = 64
    logits = torch.randn(rows, vocab) * 3
    logits[::3] = logits[::3].round()
    logits[1::4] -= 50
    params = sample_params(
        rows,
        temperature=torch.rand(rows) * 2,
        top_k=torch.randint(0, 200, (rows,), dtype=torch.int32) * (torch.arange(rows) % 2),
        top_p=torch.where(torch.arange(rows) % 3 == 0, torch.rand(rows), 1.0),
        min_p=torch.where(torch.arange(rows) % 5 == 0, torch.rand(rows) / 10, 0.0),
        num_logprobs=3,
    )
    result, expected = cmodel.ops.sample(logits, params), REFERENCE.sample(logits, params)
    assert torch.equal(result.token_ids, expected.token_ids)
    assert torch.equal(result.ranks, expected.ranks)
    assert torch.equal(result.top_ids, expected.top_ids)


def test_broken_logits_give_some_token(ops, sample_params):
    # A model that overflowed must not take the server down with it.
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[nan] * 9, [-inf] * 9, [inf] * 9, [0.0, nan, *[1.0] * 7], [inf, -inf, *[0.0] * 7]])
    for temperature in (0.0, 1.0):
        for top_k, top_p, min_p in ((0, 1.0, 0.0), (3, 0.5, 0.1), (0, 0.5, 0.0)):
            params = sample_params(
                5,
                temperature=torch.full((5,), temperature),
                top_k=torch.full((5,), top_k, dtype=torch.int32),
                top_p=torch.full((5,), top_p),
                min_p=torch.full((5,), min_p),
                num_logprobs=2,
            )
            ids = ops.sample(logits, params).token_ids
            assert ids.min() >= 0 and ids.max() < 9


def test_no_rows(ops, sample_params):
    assert ops.sample(torch.empty(0, 5), sample_params(0, num_logprobs=1)).token_ids.shape == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_p": torch.ones(3)}, "top_p must have one entry"),
        ({"mask": torch.zeros(2, 1, dtype=torch.int32)}, "mask must be"),
        ({"num_logprobs": 51}, "num_logprobs must be at most 50"),
        ({"bias_rows": torch.tensor([0])}, "come together"),
        (
            {"bias_rows": torch.tensor([2]), "bias_ids": torch.tensor([0]), "bias_values": torch.ones(1)},
            "bias_rows must be in",
        ),
        (
            {
                "penalty_rows": torch.tensor([0]),
                "penalty_ids": torch.tensor([50]),
                "output_counts": torch.ones(1, dtype=torch.int32),
            },
            "penalty_ids in",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(ops, sample_params, given, message):
    with pytest.raises(ValueError, match=message):
        ops.sample(torch.zeros(2, 50), sample_params(2, **given))


def test_the_vocabulary_of_a_large_model(native, sample_params):
    # Every path of the kernel at a real size, where the kept sets are large.
    torch.manual_seed(1)
    logits = torch.randn(4, 151_936)
    for given in ({}, {"top_p": torch.full((4,), 0.95)}, {"top_k": torch.full((4,), 5000, dtype=torch.int32)}):
        params = sample_params(4, num_logprobs=20, **given)
        result, expected = native.ops.sample(logits, params), REFERENCE.sample(logits, params)
        assert torch.equal(result.token_ids, expected.token_ids)
        assert torch.equal(result.top_ids, expected.top_ids)
        torch.testing.assert_close(result.logprobs, expected.logprobs, rtol=0, atol=2e-5)


def test_logits_of_a_packed_head_are_sampled_as_they_come(native, sample_params):
    # The kernel reads bfloat16 logits itself.
    torch.manual_seed(2)
    head = native.pack(DenseWeight(torch.randn(1000, 64).bfloat16()))
    logits = native.ops.linear(torch.randn(6, 64).bfloat16(), head)
    params = sample_params(6, num_logprobs=2)
    result, expected = native.ops.sample(logits, params), REFERENCE.sample(logits, params)
    assert torch.equal(result.token_ids, expected.token_ids)
