"""Routing and experts on the native kernels, on every instruction set, against the reference."""

import random
from dataclasses import replace

import pytest
import torch

from device.cmodel.device import CmodelDevice
from device.interface import DenseWeight, ExpertsWeight, Float8Weight, IntWeight
from device.reference import ReferenceOps, ReferenceWeight, reference_weight
from tests.device.closeness import assert_close

REFERENCE = ReferenceOps()
SHAPES = 200


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def size(generator, most):
    return max(1, int(most ** generator.random()))


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


# --- experts ---

KINDS = ["dense", "float32", "int4", "int8", "float8"]


def random_matrices(kind, dtype, count, outputs, inputs, seed):
    """Weights of experts that are packed as one, their results near 1 for inputs near 1."""
    generator, size = random.Random(seed), inputs**-0.5
    if kind in ("dense", "float32"):
        exact = dtype if kind == "dense" else torch.float32
        return [DenseWeight((torch.randn(outputs, inputs) * size).to(exact)) for _ in range(count)]
    group = generator.choice([32, 64, 128, inputs, 20])
    if kind == "float8":
        values = (torch.randn(count, outputs, inputs) * 16).to(torch.float8_e4m3fn)
        scales = torch.rand(count, outputs, -(-inputs // group)) * size / 8
        return [Float8Weight(*each, group) for each in zip(values, scales, strict=True)]
    bits = 4 if kind == "int4" else 8
    ordered, shifted = generator.random() < 0.3 and group % 32 == 0, generator.random() < 0.5
    scale_dtype = generator.choice([torch.float16, torch.bfloat16, torch.float32])
    weights = []
    for expert in range(count):
        codes = torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8)
        scales = (torch.rand(outputs, -(-inputs // group)) * size * 4 / 2**bits + 1e-4).to(scale_dtype)
        middle = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.uint8)
        # One expert's zero points may be the middle where others' are not.
        zeros = torch.randint(1 << bits, scales.shape, dtype=torch.uint8) if shifted and expert != 1 else middle
        order = torch.randperm(inputs, dtype=torch.int32) if ordered else None
        weights.append(IntWeight(codes, scales, zeros, group, bits, order))
    return weights


def random_experts(kind, dtype, seed):
    """Experts, x, the arguments of fused_experts after them."""
    generator = random.Random(seed)
    count, tokens = generator.choice([1, 2, 5, size(generator, 40)]), generator.choice([0, 1, 2, size(generator, 120)])
    top_k = generator.choice([1, count, generator.randint(1, count)])
    top_k, even = min(top_k, 6), 2 if kind == "int4" else 1
    hidden, intermediate = even * size(generator, 300 // even), even * size(generator, 200 // even)
    gate_up = random_matrices(kind, dtype, count, 2 * intermediate, hidden, seed)
    weight = ExpertsWeight(gate_up, random_matrices(kind, dtype, count, hidden, intermediate, seed + 1))
    # Some experts are everybody's choice and some nobody's.
    liking = torch.randn(count) * generator.choice([0, 4])
    ids = (torch.rand(tokens, count).logit() + liking).topk(top_k, -1).indices.int()
    arguments = [ids, torch.rand(tokens, top_k), generator.choice(["silu", "gelu", "gelu_tanh"])]
    if generator.random() < 0.6:
        arguments.append(torch.randn(tokens, hidden).to(dtype))
        if generator.random() < 0.5:
            arguments.append(torch.randn(tokens, 1).to(dtype))
    return weight, torch.randn(tokens, hidden).to(dtype), arguments


@pytest.mark.parametrize("kind", KINDS)
def test_experts_over_random_shapes(cmodel, kind):
    dtypes = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)
    for seed in range(SHAPES if kind == "dense" else SHAPES // 3):
        dtype = dtypes[seed % 4]
        weight, x, arguments = random_experts(kind, dtype, seed)
        result = cmodel.ops.fused_experts(x, cmodel.pack(weight, "experts"), *arguments)
        expected = REFERENCE.fused_experts(x, reference_weight(weight), *arguments)
        assert result.shape == expected.shape
        if len(x):
            assert_close(result, expected, (seed, dtype, x.shape, len(weight.down), arguments[0].shape))


@pytest.fixture
def on_threads(cmodel, monkeypatch):
    """The instruction set's device on so many threads."""

    def make(threads):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        return CmodelDevice()

    return make


def part_of(arguments, rows):
    return [each if isinstance(each, str) else each[rows] for each in arguments]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone(on_threads, dtype, kind):
    for seed in (3, 4):
        weight, _, _ = random_experts(kind, dtype, seed)
        hidden, count = weight.down[0].values.shape[0], len(weight.down)
        x, top_k = torch.randn(1300, hidden).to(dtype), min(count, 3)
        ids = torch.rand(1300, count).topk(top_k, -1).indices.int()
        # Half of the rows go to the same experts, which so have more rows than one pass takes.
        ids[:650] = ids[0]
        arguments = [ids, torch.rand(1300, top_k), "silu", torch.randn(1300, hidden).to(dtype)]
        device = on_threads(1)
        packed = device.pack(weight, "experts")
        whole = device.ops.fused_experts(x, packed, *arguments)
        device = on_threads(2)
        assert torch.equal(device.ops.fused_experts(x, packed, *arguments), whole)
        for start, length in ((0, 1), (1299, 1), (640, 20), (700, 3), (100, 600), (0, 1299)):
            rows = slice(start, start + length)
            assert torch.equal(device.ops.fused_experts(x[rows], packed, *part_of(arguments, rows)), whole[rows])


def test_tokens_that_are_computed_in_turns(native):
    # What is kept between the products of these, 2 * 4 * (4000 + 100) bytes for each, is more than is taken at once.
    weight = ExpertsWeight(
        [DenseWeight(torch.randn(200, 4000).bfloat16() / 60) for _ in range(4)],
        [DenseWeight(torch.randn(4000, 100).bfloat16() / 10) for _ in range(4)],
    )
    x, packed = torch.randn(2500, 4000).bfloat16(), native.pack(weight, "experts")
    arguments = [torch.arange(4).int().expand(2500, 4), torch.rand(2500, 4), "silu"]
    whole = native.ops.fused_experts(x, packed, *arguments)
    for rows in (slice(0, 9), slice(1245, 1255), slice(2491, 2500)):
        part = part_of(arguments, rows)
        assert torch.equal(native.ops.fused_experts(x[rows], packed, *part), whole[rows])
        assert_close(whole[rows], REFERENCE.fused_experts(x[rows], reference_weight(weight), *part), rows)


def test_experts_that_nobody_chose_are_not_read(cmodel, dtype):
    weight, x, arguments = random_experts("dense", dtype, 3)
    count = len(weight.down) + 2
    nans = [DenseWeight(torch.full_like(each[0].values, float("nan"))) for each in (weight.gate_up, weight.down)]
    more = ExpertsWeight([nans[0], *weight.gate_up, nans[0]], [nans[1], *weight.down, nans[1]])
    expected = cmodel.ops.fused_experts(x, cmodel.pack(weight), *arguments)
    ids = arguments[0] + 1
    assert int(ids.max()) < count - 1
    assert torch.equal(cmodel.ops.fused_experts(x, cmodel.pack(more), ids, *arguments[1:]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_captured_experts(cmodel, dtype, kind):
    rows, hidden, experts = 12, 64, 6
    gate_up = random_matrices(kind, dtype, experts, 2 * 45 + 2, hidden, 1)
    packed = cmodel.pack(ExpertsWeight(gate_up, random_matrices(kind, dtype, experts, hidden, 46, 1)), "experts")
    router = cmodel.pack(DenseWeight(torch.randn(experts, hidden)), "router")
    gate = cmodel.pack(DenseWeight(torch.randn(1, hidden).to(dtype) / 8))
    shared = [cmodel.pack(DenseWeight(torch.randn(shape).to(dtype) / 8)) for shape in ((128, hidden), (hidden, 64))]
    x = torch.randn(rows, hidden).to(dtype)
    bias = torch.randn(experts)

    def layer():
        ids, weights = cmodel.ops.route_experts(
            x, router, 2, "sigmoid", renormalize=True, groups=3, top_groups=2, bias=bias
        )
        both = cmodel.ops.gated_mlp(x, *shared, "silu"), cmodel.ops.linear(x, gate)
        return cmodel.ops.fused_experts(x, packed, ids, weights, "silu", *both)

    replay = cmodel.capture(layer, rows)
    assert replay is not None
    for count in (12, 1, 5, 12):
        x.copy_(torch.randn(rows, hidden))
        assert torch.equal(replay(count), layer()[:count])


@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_packed_experts_from_their_state(native, kind):
    weight, x, arguments = random_experts(kind, torch.bfloat16, 2)
    packed = native.pack(weight, "experts")
    state = native.state_of(packed)
    assert state is not None
    restored = native.restore(*state)
    assert restored.nbytes == packed.nbytes and restored.experts == packed.experts
    expected = native.ops.fused_experts(x, packed, *arguments)
    assert torch.equal(native.ops.fused_experts(x, restored, *arguments), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_without_values(native, kind):
    for seed in range(12):
        weight, _, _ = random_experts(kind, torch.bfloat16, seed)
        shapes = [[replace(each, values=each.values.to("meta")) for each in part] for part in vars(weight).values()]
        sizes, packed = native.pack(ExpertsWeight(*shapes), "experts"), native.pack(weight, "experts")
        for name in ("nbytes", "experts", "intermediate", "in_features", "out_features"):
            assert getattr(sizes, name) == getattr(packed, name), (seed, name)


def test_what_does_not_fit_is_refused(native):
    dense = lambda *shape: DenseWeight(torch.zeros(shape))  # noqa: E731
    packed = native.pack(ExpertsWeight([dense(6, 8)] * 3, [dense(8, 3)] * 3), "experts")
    x, ids, weights = torch.zeros(2, 8), torch.zeros(2, 2).int(), torch.zeros(2, 2)
    for wrong, message in (
        ((x, ids + 3, weights), r"ids must be in \[0, 3\)"),
        ((x, ids - 1, weights), r"ids must be in \[0, 3\)"),
        ((x[:, :7], ids, weights), "does not fit"),
        ((x, ids, weights[:1]), "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            native.ops.fused_experts(wrong[0], packed, *wrong[1:], "silu")
    half = native.pack(ExpertsWeight([DenseWeight(torch.zeros(6, 8).half())], [DenseWeight(torch.zeros(8, 3).half())]))
    with pytest.raises(ValueError, match=r"x is torch\.float32, the weight torch\.float16"):
        native.ops.fused_experts(x, half, ids, weights, "silu")
    for gate_up, down in (
        ([dense(6, 8)] * 2, [dense(8, 3)] * 3),
        ([dense(6, 8)] * 3, [dense(8, 4)] * 3),
        ([dense(6, 8)] * 3, [dense(7, 3)] * 3),
        ([dense(6, 8), dense(6, 7)], [dense(8, 3)] * 2),
        ([dense(6, 8), DenseWeight(torch.zeros(6, 8).half())], [dense(8, 3)] * 2),
    ):
        with pytest.raises(ValueError, match=r"experts need|must be alike"):
            native.pack(ExpertsWeight(gate_up, down), "experts")
