"""Every native kernel, on every instruction set, against the reference."""

import pytest
import torch

from device.interface import CacheSpec, DenseWeight
from device.reference import ReferenceOps, ReferenceWeight
from tests.device.closeness import assert_close
from tests.device.plain_cache import plain

REFERENCE = ReferenceOps()


def both(device, values):
    weight = DenseWeight(values)
    return device.pack(weight), ReferenceWeight(weight)


LINEAR_SHAPES = [
    (1, 1, 1),
    (1, 64, 96),
    (2, 7, 33),
    (5, 33, 31),
    (6, 63, 100),
    (7, 65, 64),
    (12, 128, 32),
    (15, 897, 130),
    (16, 96, 257),
    (17, 513, 65),
    (33, 1030, 40),
    (100, 300, 50),
]


@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(cmodel, dtype, shape, with_bias):
    rows, in_features, out_features = shape
    torch.manual_seed(rows)
    x = torch.randn(rows, in_features).to(dtype)
    packed, canonical = both(cmodel, torch.randn(out_features, in_features).to(dtype))
    bias = torch.randn(out_features).to(dtype) if with_bias else None
    assert_close(cmodel.ops.linear(x, packed, bias), REFERENCE.linear(x, canonical, bias))


def test_linear_takes_more_rows_than_one_pass(cmodel):
    torch.manual_seed(0)
    x = torch.randn(1100, 40).bfloat16()
    packed, canonical = both(cmodel, torch.randn(48, 40).bfloat16())
    assert_close(cmodel.ops.linear(x, packed), REFERENCE.linear(x, canonical))


def test_linear_reads_rows_that_stand_apart(cmodel, dtype):
    x = torch.randn(9, 200).to(dtype)[:, 30:107]
    packed, canonical = both(cmodel, torch.randn(40, 77).to(dtype))
    assert_close(cmodel.ops.linear(x, packed), REFERENCE.linear(x, canonical))
    turned = torch.randn(77, 9).to(dtype).T
    assert_close(cmodel.ops.linear(turned, packed), REFERENCE.linear(turned, canonical))


def test_linear_keeps_special_values(cmodel, dtype):
    x = torch.tensor([[float("inf"), 1.0], [float("nan"), 1.0], [0.0, 0.0], [-0.0, 2.0]]).to(dtype)
    packed, _ = both(cmodel, torch.tensor([[1.0, 0.0], [-2.0, 1.0]]).to(dtype))
    y = cmodel.ops.linear(x, packed)
    assert y[0].tolist() == [float("inf"), float("-inf")]
    assert y[1].isnan().all()
    assert y[2].tolist() == [0.0, 0.0] and y[3].tolist() == [0.0, 2.0]


def test_linear_of_no_rows(cmodel, dtype):
    packed, _ = both(cmodel, torch.randn(5, 4).to(dtype))
    assert cmodel.ops.linear(torch.empty(0, 4, dtype=dtype), packed).shape == (0, 5)


def test_a_packed_weight_knows_its_size(cmodel):
    packed, _ = both(cmodel, torch.zeros(33, 40, dtype=torch.bfloat16))
    assert (packed.out_features, packed.in_features, packed.nbytes) == (33, 40, 64 * 64 * 2)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 40), (100, 65), (64, 896)], ids=str)
@pytest.mark.parametrize("first", [None, 5])
def test_embedding(cmodel, dtype, shape, first):
    torch.manual_seed(0)
    table = torch.randn(shape).to(dtype)
    ids = torch.randint(shape[0], (150,)) if first is None else torch.randint(-3, shape[0] + 20, (150,))
    expected = REFERENCE.embedding(ids, table, first)
    assert torch.equal(cmodel.ops.embedding(ids, table, first), expected)
    packed, _ = both(cmodel, table)
    assert torch.equal(cmodel.ops.embedding(ids.int(), packed, first), expected)


def test_embedding_of_ids_that_are_not_in_the_table(cmodel):
    table = torch.ones(7, 3)
    for ids in ([7], [0, -1]):
        with pytest.raises(ValueError, match=r"ids must be in \[0, 7\)"):
            cmodel.ops.embedding(torch.tensor(ids), table)
    assert cmodel.ops.embedding(torch.empty(0, dtype=torch.int64), table).shape == (0, 3)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("intermediate", [32, 45, 160])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_gated_mlp(cmodel, dtype, activation, intermediate, rows):
    torch.manual_seed(rows)
    x = torch.randn(rows, 50).to(dtype)
    gate_up, canonical_gate_up = both(cmodel, torch.randn(2 * intermediate, 50).to(dtype))
    down, canonical_down = both(cmodel, torch.randn(50, intermediate).to(dtype) / 10)
    expected = REFERENCE.gated_mlp(x, canonical_gate_up, canonical_down, activation)
    assert_close(cmodel.ops.gated_mlp(x, gate_up, down, activation), expected)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_activations_over_their_range(cmodel, activation):
    # gate is x, up is 1: the MLP gives the activation function itself.
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0, 1e-20])])[:, None]
    x = torch.cat([x, torch.ones_like(x)], dim=1)
    gate_up, canonical = both(cmodel, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    down, canonical_down = both(cmodel, torch.ones(1, 1))
    result = cmodel.ops.gated_mlp(x, gate_up, down, activation)
    expected = REFERENCE.gated_mlp(x, canonical, canonical_down, activation)
    torch.testing.assert_close(result, expected, rtol=2e-6, atol=3e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (17, 100), (40, 896), (2, 3, 64)], ids=str)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
def test_rms_norm(cmodel, dtype, shape, weight_dtype):
    torch.manual_seed(0)
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(weight_dtype or dtype)
    for raised in (None, residual):
        y, total = cmodel.ops.rms_norm(x, weight, 1e-6, raised)
        expected, expected_total = REFERENCE.rms_norm(x, weight, 1e-6, raised)
        assert_close(y, expected)
        assert torch.equal(total, expected_total)


def test_rms_norm_of_rows_cut_from_wider_ones(cmodel):
    x = torch.randn(6, 4, 40)[:, 1:3]
    weight = torch.randn(40)
    assert_close(cmodel.ops.rms_norm(x, weight, 1e-5)[0], REFERENCE.rms_norm(x, weight, 1e-5)[0])
    assert_close(cmodel.ops.rms_norm(x[:, 0], weight, 1e-5)[0], REFERENCE.rms_norm(x[:, 0], weight, 1e-5)[0])


# heads, kv_heads, head_dim, block_size, (cached, new) of each sequence
ATTENTION_CASES = [
    (1, 1, 64, 16, [(0, 1)]),
    (14, 2, 64, 16, [(0, 1), (5, 1), (63, 1), (64, 1), (700, 1), (0, 40)]),
    (8, 8, 80, 8, [(3, 1), (0, 65), (130, 33)]),
    (6, 2, 96, 32, [(31, 1), (32, 1), (10, 64)]),
    (16, 2, 128, 128, [(2999, 1), (100, 30)]),
    (5, 1, 256, 10, [(77, 1), (1, 20)]),
    (12, 3, 16, 1, [(20, 1), (0, 9)]),
    (70, 1, 24, 16, [(100, 1), (0, 3)]),
    (2, 2, 6, 64, [(64, 1), (0, 200)]),
]


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: "x".join(map(str, case[:4])))
@pytest.mark.parametrize(
    ("window", "rotary"), [(None, "none"), (None, "whole"), (50, "whole"), (1, "half"), (70, "interleaved")]
)
def test_paged_attention(cmodel, dtype, case, window, rotary, make_meta, make_rope, fill_cache):
    heads, kv_heads, dim, block, lengths = case
    blocks = sum(-(-sum(pair) // block) for pair in lengths) + 3
    meta = make_meta(lengths, blocks, block)
    tokens = int(meta.input_lengths.sum())
    torch.manual_seed(tokens)
    # Cut from one tensor, as a model with a fused projection does.
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    rope = {
        "none": None,
        "whole": make_rope(dim),
        "half": make_rope(dim // 4 * 2),
        "interleaved": make_rope(dim, interleaved=True),
    }[rotary]

    kv = cmodel.make_kv_cache(blocks, block, CacheSpec(kv_heads, (dim, dim), dtype))
    fill_cache(kv)
    expected_kv = plain(kv)
    result = cmodel.ops.paged_attention(q, k, v, kv, meta, rope, dim**-0.5, window)
    expected = REFERENCE.paged_attention(q, k, v, expected_kv, meta, rope, dim**-0.5, window)
    assert_close(result, expected)
    assert_close(plain(kv).keys, expected_kv.keys)
    assert torch.equal(plain(kv).values, expected_kv.values)


def test_paged_attention_is_not_disturbed_by_what_lies_beyond_a_sequence(cmodel, dtype, make_meta):
    # The slots behind the last token hold NaN, as uninitialised memory may.
    kv = cmodel.make_kv_cache(6, 16, CacheSpec(1, (64, 64), dtype))
    kv.keys.fill_(float("nan"))
    kv.values.fill_(float("nan"))
    for lengths in ([(0, 20)], [(20, 1), (0, 5)], [(21, 12)], [(33, 2)]):
        meta = make_meta(lengths, 6, 16)
        q = torch.randn(int(meta.input_lengths.sum()), 2, 64).to(dtype)
        assert cmodel.ops.paged_attention(q, q[:, :1], q[:, 1:], kv, meta, None, 0.125).isfinite().all()


def test_paged_attention_with_large_scores(cmodel, make_meta):
    meta = make_meta([(0, 100)], 7, 16)
    q = torch.randn(100, 1, 64) * 40
    kv = cmodel.make_kv_cache(7, 16, CacheSpec(1, (64, 64), torch.float32))
    out = cmodel.ops.paged_attention(q, q, q, kv, meta, None, 1.0)
    expected = REFERENCE.paged_attention(q, q, q, kv, meta, None, 1.0)
    assert_close(out, expected)
