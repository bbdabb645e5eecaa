"""The reference operators against independent formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from device.interface import (
    CacheSpec,
    DenseWeight,
    ExpertsWeight,
    Float8Weight,
    IntWeight,
    KVCache,
    LatentUpWeight,
    Rope,
    Rotation,
)
from device.reference import ReferenceOps, ReferenceWeight, dequantize, reference_weight, rotate

OPS = ReferenceOps()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def packed(values):
    return ReferenceWeight(DenseWeight(values))


# A router whose products are the row itself.
IDENTITY = packed(torch.eye(8))
ONE_EXPERT = reference_weight(ExpertsWeight([DenseWeight(torch.ones(6, 4))], [DenseWeight(torch.ones(4, 3))]))


def test_embedding():
    table = torch.randn(7, 3)
    assert torch.equal(OPS.embedding(torch.tensor([6, 0, 6]), table), torch.stack([table[6], table[0], table[6]]))
    with pytest.raises(ValueError, match=r"\[0, 7\)"):
        OPS.embedding(torch.tensor([7]), table)
    part = OPS.embedding(torch.tensor([12, 9, 10, 17]), table, first=10)
    assert torch.equal(part, torch.stack([table[2], torch.zeros(3), table[0], torch.zeros(3)]))
    assert torch.equal(OPS.embedding(torch.tensor([3]), packed(table)), table[3:4])


def test_rms_norm():
    x, residual, weight = torch.randn(5, 12), torch.randn(5, 12), torch.randn(12)
    y, total = OPS.rms_norm(x, weight, 1e-3)
    torch.testing.assert_close(y, F.rms_norm(x, (12,), weight, 1e-3))
    assert total is x
    y, total = OPS.rms_norm(x, weight, 1e-3, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, F.rms_norm(x + residual, (12,), weight, 1e-3))


def test_rms_norm_rounds_once():
    x, weight = torch.randn(50, 40).bfloat16(), torch.randn(40).bfloat16()
    exact = F.rms_norm(x.double(), (40,), weight.double(), 1e-6)
    result = OPS.rms_norm(x, weight, 1e-6)[0]
    assert ((result.double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_linear():
    x, weight, bias = torch.randn(4, 9), torch.randn(6, 9), torch.randn(6)
    torch.testing.assert_close(OPS.linear(x, packed(weight), bias), x @ weight.T + bias)


def test_int4_weights():
    out, width, group = 5, 12, 4
    codes = torch.randint(16, (out, width))
    zeros, scales = torch.randint(16, (out, 3)), torch.rand(out, 3)
    values = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    weight = IntWeight(values, scales, zeros.to(torch.uint8), group)
    expected = torch.empty(out, width)
    for row in range(out):
        for column in range(width):
            at = column // group
            expected[row, column] = (codes[row, column] - zeros[row, at]) * scales[row, at]
    assert torch.equal(dequantize(weight), expected)
    canonical = ReferenceWeight(weight)
    assert (canonical.out_features, canonical.in_features) == (out, width)
    x = torch.randn(3, width)
    torch.testing.assert_close(OPS.linear(x, canonical), x @ expected.T)


def test_float8_weights():
    values, scales = torch.randn(5, 7).to(torch.float8_e4m3fn), torch.rand(5, 3)
    expected = torch.empty(5, 7)
    for row in range(5):
        for column in range(7):
            expected[row, column] = values[row, column].float() * scales[row, column // 3]
    assert torch.equal(dequantize(Float8Weight(values, scales, 3)), expected)


def test_int8_weights_in_another_order():
    codes, zeros, scales = torch.randint(256, (3, 8)), torch.randint(256, (3, 2)), torch.rand(3, 2)
    order = torch.tensor([2, 0, -1, 5, 1, 4, -1, 3], dtype=torch.int32)
    weight = IntWeight(codes.to(torch.uint8), scales, zeros.to(torch.uint8), 4, 8, order)
    expected = torch.zeros(3, 6)
    for at, channel in enumerate(order.tolist()):
        if channel >= 0:
            expected[:, channel] = (codes[:, at] - zeros[:, at // 4]) * scales[:, at // 4]
    assert torch.equal(dequantize(weight), expected)
    assert (ReferenceWeight(weight).out_features, ReferenceWeight(weight).in_features) == (3, 6)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_mlp(activation):
    x, gate, up, down = torch.randn(3, 8), torch.randn(10, 8), torch.randn(10, 8), torch.randn(8, 10)
    g = x @ gate.T
    activated = {
        "silu": g / (1 + (-g).exp()),
        "gelu": g * (1 + torch.erf(g / math.sqrt(2))) / 2,
        "gelu_tanh": g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) / 2,
    }[activation]
    result = OPS.gated_mlp(x, packed(torch.cat([gate, up])), packed(down), activation)
    torch.testing.assert_close(result, (activated * (x @ up.T)) @ down.T)


def test_rotation_is_a_product_of_complex_numbers(make_rope):
    x, positions = torch.randn(6, 2, 20), torch.tensor([0, 1, 5, 100, 3, 3])
    rope = make_rope(12)
    angle = torch.complex(rope.cos, rope.sin)[positions][:, None]
    turned = torch.complex(x[..., :6], x[..., 6:12]) * angle
    expected = torch.cat([turned.real, turned.imag, x[..., 12:]], dim=-1)
    rotation = Rotation(rope.cos[positions], rope.sin[positions])
    torch.testing.assert_close(rotate(x, rotation), expected)
    turned = torch.complex(x[..., 0:12:2], x[..., 1:12:2]) * angle
    expected = torch.cat([torch.view_as_real(turned).flatten(-2), x[..., 12:]], dim=-1)
    torch.testing.assert_close(rotate(x, rotation, interleaved=True), expected)


def test_rotation_equals_transformers(make_rope):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x, rope = torch.randn(9, 4, 32), make_rope(32, 9)
    cos, sin = (torch.cat([table[:9], table[:9]], dim=-1)[None] for table in (rope.cos, rope.sin))
    expected, _ = llama.apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    torch.testing.assert_close(rotate(x, Rotation(rope.cos, rope.sin)), expected[0].transpose(0, 1))


def sdpa(q, k, v, scale, mask):
    """Attention of one sequence: q [new, heads, dim], k and v [length, kv_heads, dim], mask [new, length]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask, scale=scale
    )
    return out.transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_paged_attention_over_two_steps(window, make_meta, make_rope):
    # Three sequences are prefilled, then two of them continue and a new one comes.
    heads, kv_heads, dim, rope = 4, 2, 8, make_rope(8)
    lengths = [7, 12, 5]
    q, k, v = ([torch.randn(n + 6, count, dim) for n in lengths] for count in (heads, kv_heads, kv_heads))
    kv = KVCache(torch.full((12, 4, kv_heads, dim), 9.0), torch.full((12, 4, kv_heads, dim), 9.0))

    def step(parts, meta):
        rows = (torch.cat([x[i][start:end] for i, start, end in parts]) for x in (q, k, v))
        return OPS.paged_attention(*rows, kv, meta, rope, 0.3, window)

    # Room for all tokens from the start, so that the sequences keep their blocks.
    whole = make_meta([(0, n + 6) for n in lengths], 15, 4)
    kv = KVCache(kv.keys.repeat(2, 1, 1, 1), kv.values.repeat(2, 1, 1, 1))

    def part(parts):
        starts = [0, 13, 31]
        slots = torch.cat([whole.slot_mapping[starts[i] + start : starts[i] + end] for i, start, end in parts])
        rows = [i for i, _, _ in parts]
        return replace(
            whole,
            input_lengths=torch.tensor([end - start for _, start, end in parts], dtype=torch.int32),
            cached_lengths=torch.tensor([start for _, start, _ in parts], dtype=torch.int32),
            block_tables=whole.block_tables[rows],
            slot_mapping=slots,
        )

    for parts in ([(0, 0, 7), (1, 0, 12)], [(0, 7, 8), (1, 12, 13), (2, 0, 5)], [(1, 13, 18), (2, 5, 11)]):
        meta = part(parts)
        assert meta.positions.tolist() == [at for _, start, end in parts for at in range(start, end)]
        out, row = step(parts, meta), 0
        for i, start, end in parts:
            at = torch.arange(end)
            seen = at <= at[start:, None]
            if window is not None:
                seen &= at > at[start:, None] - window
            queries = rotate(q[i][start:end], Rotation(rope.cos[start:end], rope.sin[start:end]))
            keys = rotate(k[i][:end], Rotation(rope.cos[:end], rope.sin[:end]))
            expected = sdpa(queries, keys, v[i][:end], 0.3, seen)
            torch.testing.assert_close(out[row : row + end - start], expected)
            row += end - start


def test_latent_attention_equals_attention_over_expanded_keys(make_meta, make_rope):
    heads, nope, rope_dim, v_dim, latent_dim, tokens = 3, 6, 4, 5, 7, 9
    rope = make_rope(rope_dim)
    q, latent = torch.randn(tokens, heads, nope + rope_dim), torch.randn(tokens, latent_dim)
    k_rope, kv_up = torch.randn(tokens, rope_dim), torch.randn(heads, nope + v_dim, latent_dim)
    expanded = torch.einsum("tl,hdl->thd", latent, kv_up)
    at, turns = torch.arange(tokens), Rotation(rope.cos[:tokens], rope.sin[:tokens])
    keys = torch.cat([expanded[..., :nope], rotate(k_rope[:, None], turns).expand(-1, heads, -1)], dim=-1)
    queries = torch.cat([q[..., :nope], rotate(q[..., nope:], turns)], dim=-1)
    expected = sdpa(queries, keys, expanded[..., nope:], 0.4, at <= at[:, None])

    packed_up = reference_weight(LatentUpWeight(DenseWeight(kv_up.flatten(0, 1)), heads, nope, torch.float32))
    kv = KVCache(torch.empty(4, 4, 1, latent_dim), torch.empty(4, 4, 1, rope_dim))
    whole = make_meta([(0, tokens)], 4, 4)
    for start, end in ((0, 6), (6, 7), (7, 9)):
        meta = replace(
            whole,
            input_lengths=torch.tensor([end - start], dtype=torch.int32),
            cached_lengths=torch.tensor([start], dtype=torch.int32),
            slot_mapping=whole.slot_mapping[start:end],
        )
        rows = slice(start, end)
        out = OPS.paged_latent_attention(q[rows].flatten(1), latent[rows], k_rope[rows], kv, packed_up, meta, rope, 0.4)
        torch.testing.assert_close(out, expected[rows], rtol=1e-4, atol=1e-5)


def test_route_experts_by_softmax():
    logits = torch.randn(5, 8)
    ids, weights = OPS.route_experts(logits, IDENTITY, 3, "softmax", renormalize=False)
    for row in range(5):
        best = sorted(range(8), key=lambda i: -logits[row, i].item())[:3]
        assert ids[row].tolist() == best
        torch.testing.assert_close(weights[row], logits[row].softmax(0)[best])
    _, weights = OPS.route_experts(logits, IDENTITY, 3, "softmax", renormalize=True, scale=2.5)
    torch.testing.assert_close(weights.sum(1), torch.full((5,), 2.5))


@pytest.mark.parametrize("with_bias", [False, True])
def test_route_experts_by_groups(with_bias):
    experts, groups, top_groups, top_k = 12, 4, 2, 4
    logits, bias = torch.randn(20, experts), torch.randn(experts) * 2
    ids, weights = OPS.route_experts(
        logits, packed(torch.eye(experts)), top_k, "sigmoid", renormalize=True, scale=1.5,
        groups=groups, top_groups=top_groups, bias=bias if with_bias else None,
    )  # fmt: skip
    for row in range(20):
        score = logits[row].sigmoid()
        choice = (score + bias if with_bias else score).tolist()
        members = [range(3 * g, 3 * g + 3) for g in range(groups)]
        best_of_group = [sum(sorted((choice[i] for i in m), reverse=True)[: 2 if with_bias else 1]) for m in members]
        kept = sorted(range(groups), key=lambda g: -best_of_group[g])[:top_groups]
        allowed = [i for g in kept for i in members[g]]
        expected = sorted(allowed, key=lambda i: -choice[i])[:top_k]
        assert ids[row].tolist() == expected
        torch.testing.assert_close(weights[row], score[expected] / score[expected].sum() * 1.5)


def test_of_equal_experts_and_groups_the_first_are_chosen():
    ids, weights = OPS.route_experts(
        torch.zeros(2, 8), IDENTITY, 3, "sigmoid", renormalize=True, groups=4, top_groups=2, bias=torch.zeros(8)
    )
    assert ids.tolist() == [[0, 1, 2]] * 2 and ids.dtype == torch.int32
    torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3))


def test_groups_that_are_left_out_are_never_chosen():
    """Not even where all scores of those that are kept, with their bias, are below 0."""
    bias = torch.tensor([-2.0, -2, -3, -3, -4, -4, -5, -5])
    ids, _ = OPS.route_experts(
        torch.randn(20, 8), IDENTITY, 2, "sigmoid", renormalize=True, groups=4, top_groups=1, bias=bias
    )
    assert ids.sort(1).values.tolist() == [[0, 1]] * 20


@pytest.mark.parametrize("with_shared", [False, True])
def test_fused_experts(with_shared):
    x, ids, weights = (
        torch.randn(6, 8),
        torch.tensor([[0, 2], [1, 0], [2, 1], [2, 0], [0, 1], [1, 2]]),
        torch.rand(6, 2),
    )
    gate_up, down = torch.randn(3, 10, 8), torch.randn(3, 8, 5)
    experts = reference_weight(ExpertsWeight([DenseWeight(w) for w in gate_up], [DenseWeight(w) for w in down]))
    shared, logits = (torch.randn(6, 8), torch.randn(6, 1)) if with_shared else (None, None)
    out = OPS.fused_experts(x, experts, ids, weights, "silu", shared, logits)
    for row in range(6):
        expected = torch.zeros(8) if shared is None else shared[row] * logits[row].sigmoid()
        for expert, weight in zip(ids[row], weights[row], strict=True):
            gate, up = (gate_up[expert] @ x[row]).chunk(2)
            expected = expected + weight * (down[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(out[row], expected)
    if shared is not None:
        plain = OPS.fused_experts(x, experts, ids, weights, "silu")
        torch.testing.assert_close(OPS.fused_experts(x, experts, ids, weights, "silu", shared), plain + shared)


def test_dense_attention():
    q, k, v = torch.randn(3, 10, 2, 8)
    out = OPS.dense_attention(q, k, v, [4, 0, 6], 0.5)
    for rows in (slice(0, 4), slice(4, 10)):
        torch.testing.assert_close(out[rows], sdpa(q[rows], k[rows], v[rows], 0.5, None))


# --- what does not fit is refused, alike by the reference and the native kernels ---


def attention_arguments(make_meta):
    kv = KVCache(torch.zeros(4, 8, 2, 16), torch.zeros(4, 8, 2, 16))
    return {
        "q": torch.zeros(6, 4, 16),
        "k": torch.zeros(6, 2, 16),
        "v": torch.zeros(6, 2, 16),
        "kv": kv,
        "step": make_meta([(9, 1), (0, 5)], 4, 8),
        "rope": None,
        "scale": 1.0,
        "window": None,
    }


BAD_ATTENTION = [
    (lambda a: a | {"k": torch.zeros(6, 2, 15)}, "do not fit a cache"),
    (lambda a: a | {"q": torch.zeros(6, 3, 16)}, "do not fit a cache"),
    (lambda a: a | {"v": a["v"].half()}, "one dtype"),
    (lambda a: a | {"window": 0}, "window must be at least 1"),
    (lambda a: a | {"rope": Rope(torch.zeros(9, 8), torch.zeros(9, 8))}, "ids must be in"),
    (lambda a: a | {"rope": Rope(torch.zeros(10, 9), torch.zeros(10, 9))}, "RoPE tables do not fit 16"),
    (lambda a: a | {"step": replace(a["step"], slot_mapping=a["step"].slot_mapping + 32)}, "a slot lies outside"),
    (lambda a: a | {"step": replace(a["step"], slot_mapping=a["step"].slot_mapping[1:])}, "or 5 slots"),
    (lambda a: a | {"step": replace(a["step"], block_tables=a["step"].block_tables - 4)}, "a block id lies outside"),
    (lambda a: a | {"step": replace(a["step"], input_lengths=a["step"].input_lengths + 1)}, "which sum to 8"),
    (lambda a: a | {"step": replace(a["step"], cached_lengths=a["step"].cached_lengths + 90)}, "fit its block table"),
    (lambda a: a | {"step": replace(a["step"], cached_lengths=-a["step"].cached_lengths)}, "no negative count"),
    (lambda a: a | {"step": replace(a["step"], cached_lengths=a["step"].cached_lengths[:1])}, "must be as many"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ATTENTION, ids=[message for _, message in BAD_ATTENTION])
def test_attention_arguments_that_do_not_fit_are_refused(change, message, make_meta, native):
    for ops in (OPS, native.ops):
        arguments = attention_arguments(make_meta)
        if ops is not OPS:
            arguments["kv"] = native.make_kv_cache(4, 8, CacheSpec(2, (16, 16), torch.float32))
        ops.paged_attention(**arguments)
        with pytest.raises(ValueError, match=message):
            ops.paged_attention(**change(arguments))


def test_shapes_that_do_not_fit_are_refused(native):
    for ops, pack in ((OPS, packed), (native.ops, lambda values: native.pack(DenseWeight(values)))):
        weight = pack(torch.zeros(6, 9))
        with pytest.raises(ValueError, match=r"x \[2, 8\] does not fit a weight of 6 x 9"):
            ops.linear(torch.zeros(2, 8), weight)
        with pytest.raises(ValueError, match=r"bias \[5\]"):
            ops.linear(torch.zeros(2, 9), weight, torch.zeros(5))
        with pytest.raises(ValueError, match="not an activation dtype"):
            ops.linear(torch.zeros(2, 9, dtype=torch.int32), weight)
        with pytest.raises(ValueError, match="down needs twice 4"):
            ops.gated_mlp(torch.zeros(2, 9), weight, pack(torch.zeros(9, 4)), "silu")
        with pytest.raises(ValueError, match="'relu' is none of silu, gelu, gelu_tanh"):
            ops.gated_mlp(torch.zeros(2, 9), weight, pack(torch.zeros(9, 3)), "relu")
        with pytest.raises(ValueError, match="does not fit weight"):
            ops.rms_norm(torch.zeros(2, 9), torch.zeros(8), 1e-6)
        with pytest.raises(ValueError, match="x's shape"):
            ops.rms_norm(torch.zeros(2, 9), torch.zeros(9), 1e-6, torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"x is torch\.float32, the weight torch\.bfloat16"):
        native.ops.linear(torch.zeros(2, 9), native.pack(DenseWeight(torch.zeros(6, 9).bfloat16())))
    with pytest.raises(ValueError, match="make_kv_cache"):
        kv = KVCache(torch.zeros(4, 8, 2, 16), torch.zeros(4, 8, 2, 16))
        native.ops.paged_attention(
            torch.zeros(0, 4, 16), torch.zeros(0, 2, 16), torch.zeros(0, 2, 16), kv, None, None, 1.0
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.route_experts(torch.zeros(2, 8), IDENTITY, 9, "softmax", renormalize=False), "cannot take 9 of 8"),
        (lambda: OPS.route_experts(torch.zeros(2, 8), IDENTITY, 1, "tanh", renormalize=False), "'tanh'"),
        (lambda: OPS.dense_attention(*torch.zeros(3, 5, 2, 8), [2, 2], 1.0), "sum to 4, not to 5"),
        (
            lambda: OPS.fused_experts(
                torch.zeros(1, 4), ONE_EXPERT, torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, 1), "silu"
            ),
            r"ids must be in \[0, 1\)",
        ),
        (
            lambda: OPS.fused_experts(
                torch.zeros(1, 4),
                ONE_EXPERT,
                torch.zeros(1, 1, dtype=torch.int32),
                torch.zeros(1, 1),
                "silu",
                shared_logits=torch.zeros(1, 1),
            ),
            "come with shared",
        ),
    ],
)
def test_expert_and_segment_arguments_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
