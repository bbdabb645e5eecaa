"""Routing and experts on the native kernels, on every instruction set, against the reference."""

import random

import pytest
import torch

from device.interface import DenseWeight
from device.reference import ReferenceOps, ReferenceWeight

REFERENCE = ReferenceOps()
SHAPES = 200
# Half a unit in the last place of the result, with room for sums in another order; a share of the largest result.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def size(generator, most):
    return max(1, int(most ** generator.random()))


def assert_close(result, expected, case):
    assert result.dtype == expected.dtype and result.shape == expected.shape, case
    worst = float((result.float() - expected.float()).abs().max())
    scale = float(expected.float().abs().max())
    assert worst <= TOLERANCE[expected.dtype] * max(scale, 1e-3), f"{case}: off by {worst}, at a scale of {scale}"


def test_float32_weights_take_x_of_any_dtype(cmodel, dtype):
    for seed in range(60):
        generator = random.Random(seed)
        rows, inputs, outputs = size(generator, 150), size(generator, 1000), size(generator, 300)
        x, weight = torch.randn(rows, inputs).to(dtype), DenseWeight(torch.randn(outputs, inputs))
        bias = torch.randn(outputs).to(dtype) if seed % 2 else None
        expected = REFERENCE.linear(x, ReferenceWeight(weight), bias)
        assert_close(cmodel.ops.linear(x, cmodel.pack(weight), bias), expected, (rows, inputs, outputs))


# --- routing ---


def random_routing(seed):
    """Logits `[rows, experts]`, and how to choose by them."""
    generator = random.Random(seed)
    groups, scoring = generator.choice([1, 1, 2, 4, 8]), generator.choice(["softmax", "sigmoid"])
    top_groups, members = generator.randint(1, groups), size(generator, 80)
    experts, rows = groups * members, size(generator, 60)
    options = {
        "top_k": generator.randint(1, min(members * top_groups, 12)),
        "scoring": scoring,
        "renormalize": generator.random() < 0.5,
        "scale": generator.choice([1.0, 2.5]),
        "groups": groups,
        "top_groups": top_groups,
        "bias": torch.randn(experts) / 4 if generator.random() < 0.5 else None,
    }
    return torch.randn(rows, experts) * generator.choice([1, 8]), options


def identity(experts):
    """The router whose logits are x itself."""
    return DenseWeight(torch.eye(experts))


def test_routing_over_random_shapes(cmodel):
    for seed in range(SHAPES):
        logits, options = random_routing(seed)
        router = identity(logits.shape[1])
        ids, weights = cmodel.ops.route_experts(logits, cmodel.pack(router, "router"), **options)
        expected_ids, expected = REFERENCE.route_experts(logits, ReferenceWeight(router), **options)
        assert ids.dtype == torch.int32 and torch.equal(ids, expected_ids), (seed, options)
        torch.testing.assert_close(weights, expected, rtol=3e-6, atol=1e-30)


def test_logits_are_not_rounded(cmodel, dtype):
    # In x's dtype these would be equal, and the first would be chosen.
    router = torch.zeros(2, 64)
    router[0], router[1] = 1, 1 + 2.0**-14
    for weight in (router, router.to(dtype)):
        packed = cmodel.pack(DenseWeight(weight), "router")
        ids, _ = cmodel.ops.route_experts(torch.ones(3, 64).to(dtype), packed, 1, "softmax", renormalize=False)
        assert ids.tolist() == [[int(weight[1, 0] > 1)]] * 3


def test_of_equal_experts_the_first_are_chosen(cmodel):
    router, bias = cmodel.pack(identity(12), "router"), torch.zeros(12)
    for scoring in ("softmax", "sigmoid"):
        ids, weights = cmodel.ops.route_experts(torch.zeros(9, 12), router, 4, scoring, renormalize=True)
        assert ids.tolist() == [[0, 1, 2, 3]] * 9 and torch.equal(weights, torch.full((9, 4), 0.25))
        ids, _ = cmodel.ops.route_experts(
            torch.zeros(9, 12), router, 4, scoring, renormalize=True, groups=4, top_groups=2, bias=bias
        )
        assert ids.tolist() == [[0, 1, 2, 3]] * 9


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_not_a_number_is_never_chosen_twice_or_beyond(cmodel, scoring, groups):
    router, options = cmodel.pack(identity(16), "router"), {"groups": groups, "top_groups": max(1, groups // 2)}
    logits = torch.randn(40, 16)
    clean, clean_weights = cmodel.ops.route_experts(logits, router, 8, scoring, renormalize=True, **options)
    bad = logits.clone()
    bad[0, 3] = bad[2] = bad[4, 5:] = float("nan")
    bad[6], bad[8, 2], bad[10, 4] = float("-inf"), float("inf"), float("-inf")
    # Through the identity, what is no number or infinite is in every logit of its row.
    for bias in (None, torch.full((16,), float("nan")), torch.full((16,), float("-inf"))):
        ids, weights = cmodel.ops.route_experts(bad, router, 8, scoring, renormalize=True, bias=bias, **options)
        assert int(ids.min()) >= 0 and int(ids.max()) < 16
        assert all(len(set(row)) == 8 for row in ids.tolist())
        if bias is None:
            assert torch.equal(ids[11:], clean[11:]) and torch.equal(weights[11:], clean_weights[11:])

    broken = torch.eye(16)
    broken[3] = float("nan")
    ids, weights = cmodel.ops.route_experts(
        logits, cmodel.pack(DenseWeight(broken), "router"), 7, scoring, renormalize=True, **options
    )
    assert all(len(set(row)) == 7 for row in ids.tolist())
    assert scoring == "softmax" or not bool((ids == 3).any())


def test_a_row_is_routed_the_same_alone(cmodel):
    for seed in range(0, SHAPES, 5):
        logits, options = random_routing(seed)
        router = cmodel.pack(identity(logits.shape[1]), "router")
        ids, weights = cmodel.ops.route_experts(logits, router, **options)
        for row in range(0, len(logits), 7):
            alone = cmodel.ops.route_experts(logits[row : row + 1], router, **options)
            assert torch.equal(alone[0], ids[row : row + 1]) and torch.equal(alone[1], weights[row : row + 1])
