"""What a device notes while it is profiled."""

from itertools import pairwise

import pytest
import torch

from device.cmodel.device import CmodelDevice
from device.cmodel.kernels import Kernel
from device.interface import CacheSpec, DenseWeight, ExpertsWeight, IntWeight, Rotation
from device.operator_profile import OperatorProfile, operator_cost, seen_positions
from device.reference import ReferenceOps, visible


def names(records):
    return [record.operator for record in records]


def check_order(records):
    for before, after in pairwise(records):
        assert before.duration_ns >= 0 and before.start_ns + before.duration_ns <= after.start_ns


@pytest.fixture
def profiled(native):
    native.start_profile(1000, 1)
    yield native
    native.stop_profile()


def test_kernels_and_what_they_had_to_do(profiled):
    weight = profiled.pack(DenseWeight(torch.ones(64, 32)))
    codes = torch.zeros(64, 32, dtype=torch.uint8), torch.ones(64, 1), torch.zeros(64, 1, dtype=torch.uint8)
    quantized = profiled.pack(IntWeight(*codes, group_size=64))
    x = torch.ones(3, 32)
    profiled.profile_records()
    profiled.ops.linear(x, weight, torch.ones(64))
    profiled.ops.linear(torch.ones(3, 64), quantized)
    profiled.ops.rms_norm(x, torch.ones(32), 1e-6, x)
    profiled.ops.layer_norm(x, torch.ones(32), torch.ones(32), 1e-6)
    linear, int4, norm, layer_norm = records = profiled.profile_records()
    check_order(records)
    assert linear[0] == "linear 64x32" and linear[3:] == (4 * (3 * 32 + 64 * 32 + 64 + 3 * 64), 2 * 3 * 64 * 32, "")
    assert int4[0] == "quantized_linear 64x64"
    # Zero points are one byte a group, for they are not the middle of the codes.
    assert int4[3:] == (4 * 2 * 3 * 64 + 64 * 64 // 2 + 64 * 1 * 5, 2 * 3 * 64 * 64, "")
    assert norm[0] == "rms_norm" and norm[3:] == (4 * (4 * 3 * 32 + 32), 4 * 3 * 32, "")
    assert layer_norm[0] == "layer_norm" and layer_norm[3:] == (4 * (2 * 3 * 32 + 2 * 32), 7 * 3 * 32, "")
    assert profiled.profile_records() == []


def test_nothing_is_left_when_it_stops(native, sample_params):
    ops = dict(vars(native.ops))
    native.start_profile(1000, 2)
    assert Kernel.intercept is not None
    native.stop_profile()
    native.ops.sample(torch.randn(1, 8), sample_params(1))
    assert Kernel.intercept is None and vars(native.ops) == ops and native.profile_records() == []


def test_mode_2_tells_parameters(native, sample_params):
    native.start_profile(1000, 2)
    try:
        native.ops.sample(torch.randn(2, 40), sample_params(2))
        (record,) = native.profile_records()
    finally:
        native.stop_profile()
    assert record.operator == "sample" and "rows=2 vocab=40" in record.detail


@pytest.mark.parametrize("rows", [4, 1])
def test_a_replay_is_noted_command_by_command(native, decode_inputs, make_rope, rows):
    kv = native.make_kv_cache(8, 16, CacheSpec(2, (16, 16), torch.float32))
    inputs, rope = decode_inputs([3, 17, 0, 9], 8, 16), make_rope(16)
    weight = native.pack(DenseWeight(torch.ones(64, 64)))
    x = torch.ones(4, 64)

    def fn():
        q = native.ops.linear(x, weight)[:, :32].unflatten(-1, (-1, 16))
        step = native.prepare(inputs, [rope])
        return native.ops.paged_attention(q, q, q, kv, step, rope, 1.0).flatten(-2)

    native.start_profile(1000, 1)
    try:
        replay = native.capture(fn, 4)
        assert native.profile_records() == []
        replay(rows)
        linear, cos, sin, attention = records = native.profile_records()
    finally:
        native.stop_profile()
    check_order(records)
    assert names(records) == ["linear 64x64", "embedding", "embedding", "paged_attention"]
    assert cos.bytes == sin.bytes == rows * (4 + 2 * 8 * 4)
    assert linear.operations == 2 * rows * 64 * 64
    read = sum([4, 18, 1, 10][:rows])
    # Two heads of 16 + 16 channels of float32: what is read; of each token q and the result, k and v, both twice.
    assert attention.bytes == 4 * 64 * (read + 3 * rows) and attention.operations == 2 * 2 * 32 * read


def test_dense_attention_counts_the_pairs_of_each_segment(profiled):
    q, turns = torch.randn(6, 2, 8), torch.ones(6, 3)
    profiled.ops.dense_attention(q, q, q, [2, 4], 1.0)
    profiled.ops.dense_attention(q, q, q, [2, 4], 1.0, Rotation(turns, turns))
    plain, rotated = records = profiled.profile_records()
    assert names(records) == ["dense_attention"] * 2
    assert plain[3:5] == (4 * 4 * 6 * 16, 4 * 16 * (4 + 16))
    assert rotated[3:5] == (plain.bytes + 2 * 4 * 6 * 3, plain.operations)


def test_experts_count_those_that_have_rows(monkeypatch):
    """Two of four."""
    monkeypatch.setenv("CMODEL_FAST_EXEC", "0")
    device = CmodelDevice()
    dense = lambda *shape: [DenseWeight(torch.randn(shape)) for _ in range(4)]  # noqa: E731
    packed = device.pack(ExpertsWeight(dense(64, 32), dense(32, 32)), "experts")
    ids, weights = torch.tensor([[0], [1], [0]], dtype=torch.int32), torch.ones(3, 1)
    device.start_profile(1000, 1)
    device.ops.fused_experts(torch.randn(3, 32), packed, ids, weights, "silu")
    (experts,) = device.profile_records()
    device.stop_profile()
    assert experts.operations == 2 * 3 * 32 * (64 + 32)
    assert 2 * 3 * 32 * 32 * 4 <= experts.bytes < 4 * 3 * 32 * 32 * 4


def test_a_replay_counts_the_experts_that_have_rows(native):
    """Their weights alone are read, and the label names what they are chosen from."""
    hidden, inner, count = 32, 20, 6
    dense = lambda *shape: [DenseWeight(torch.randn(shape)) for _ in range(count)]  # noqa: E731
    experts = native.pack(ExpertsWeight(dense(2 * inner, hidden), dense(hidden, inner)), "experts")
    router, x = native.pack(DenseWeight(torch.eye(count, hidden)), "router"), torch.zeros(4, hidden)

    def fn():
        ids, weights = native.ops.route_experts(x, router, 2, "softmax", renormalize=True)
        return native.ops.fused_experts(x, experts, ids, weights, "silu", x)

    native.start_profile(1000, 1)
    try:
        replay = native.capture(fn, 4)
        x[0, 3] = x[1, 4] = x[2, 3] = 1
        replay(3)
        linear, routing, chosen = records = native.profile_records()
    finally:
        native.stop_profile()
    assert names(records) == ["linear 6x32", "route_experts", "fused_experts 6x20x32"]
    assert linear.operations == 2 * 3 * 6 * 32 and routing.bytes == 3 * (6 * 4 + 2 * 8)
    # 0 and 3, 0 and 4, 0 and 3: three experts. x, what is shared and the result; ids and weights.
    assert chosen.bytes == 3 * 3 * inner * hidden * 4 + 3 * 3 * hidden * 4 + 3 * 2 * 8
    assert chosen.operations == 2 * 3 * 2 * 3 * inner * hidden


def test_quantized_experts_count_codes_and_scales(profiled):
    hidden, inner, count = 64, 32, 3

    def int4(outputs, inputs):
        zeros = torch.zeros(outputs, inputs // 32, dtype=torch.uint8)
        return IntWeight(torch.zeros(outputs, inputs // 2, dtype=torch.uint8), zeros.half(), zeros, 32)

    packed = profiled.pack(ExpertsWeight([int4(2 * inner, hidden)] * count, [int4(hidden, inner)] * count), "experts")
    profiled.profile_records()
    ids = torch.tensor([[1], [1]], dtype=torch.int32)
    profiled.ops.fused_experts(torch.zeros(2, hidden), packed, ids, torch.ones(2, 1), "silu")
    (experts,) = profiled.profile_records()
    assert experts.operator == "quantized_fused_experts 3x32x64"
    # Of one expert half a byte each, and for each group a scale of 2 bytes and a zero point of 1.
    assert experts.bytes == 3 * inner * hidden // 2 + 3 * inner * hidden // 32 * 3 + 2 * 2 * hidden * 4 + 2 * 8


@pytest.mark.parametrize("fast", ["0", "1"])
def test_without_kernels_every_operator_is_noted(monkeypatch, fast, sample_params):
    monkeypatch.setenv("CMODEL_FAST_EXEC", fast)
    device = CmodelDevice()
    device.start_profile(1000, 1)
    try:
        weight = device.pack(DenseWeight(torch.ones(64, 32)))
        device.profile_records()
        device.ops.linear(torch.ones(3, 32), weight)
        device.ops.sample(torch.randn(2, 50), sample_params(2))
        linear, sample = device.profile_records()
    finally:
        device.stop_profile()
    assert linear.operations == 2 * 3 * 32 * 64 and sample.operations == 100


def test_any_device_inherits_a_profile():
    class Plain(OperatorProfile):
        ops = ReferenceOps()
        operators = frozenset({"rms_norm"})
        waits = 0

        def synchronize(self):
            self.waits += 1

    device = Plain()
    x = torch.ones(2, 4)
    assert device.profile_records() == []
    device.start_profile(10, 1)
    device.ops.rms_norm(x, x[0], 1e-6)
    assert device.waits == 2
    assert [record[3:5] for record in device.profile_records()] == [(4 * (8 + 4 + 8 + 8), 32)]
    device.stop_profile()
    device.ops.rms_norm(x, x[0], 1e-6)
    assert device.profile_records() == []


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_positions_that_attention_sees(window):
    for cached, new in ((0, 1), (0, 9), (7, 1), (2, 5), (20, 3)):
        seen = visible(cached, new, window)
        assert seen_positions([new], [cached], window) == (int(seen.any(0).sum()), int(seen.sum()))


def test_attention_costs_the_same_by_kernel_and_by_operator(profiled, make_meta, make_rope):
    kv = profiled.make_kv_cache(8, 16, CacheSpec(2, (16, 16), torch.float32))
    meta = make_meta([(30, 1), (5, 1), (2, 9)], 8, 16)
    q, k = torch.randn(11, 4, 16), torch.randn(11, 2, 16)
    out = profiled.ops.paged_attention(q, k, k, kv, meta, make_rope(16), 1.0, 8)
    *_, record = profiled.profile_records()
    moved, operations = operator_cost("paged_attention", {"q": q, "kv": kv, "step": meta, "window": 8}, out)
    assert (record.bytes, record.operations) == (moved, operations)
