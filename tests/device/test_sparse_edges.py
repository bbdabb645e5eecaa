"""Experts and latent attention at their edges: against the reference, and what is no number stays in its own rows."""

from __future__ import annotations

import pytest
import torch

from device.interface import AttentionMeta, CacheSpec, DenseWeight, ExpertsWeight, KVCache, LatentUpWeight
from device.reference import ReferenceOps, reference_weight
from tests.device.closeness import assert_close

REFERENCE = ReferenceOps()
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def same_bits(left, right):
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def make_experts(count, hidden, inner, dtype):
    gate_up = [DenseWeight((torch.randn(2 * inner, hidden) / hidden**0.5).to(dtype)) for _ in range(count)]
    return ExpertsWeight(
        gate_up, [DenseWeight((torch.randn(hidden, inner) / inner**0.5).to(dtype)) for _ in range(count)]
    )


# (tokens, experts, top_k, hidden, intermediate), and whom the tokens choose.
EDGES = {
    "no token": (0, 4, 2, 32, 16, "any"),
    "one expert": (9, 1, 1, 40, 33, "any"),
    "all experts": (7, 11, 11, 64, 24, "any"),
    "one inner feature": (20, 6, 3, 48, 1, "any"),
    "one hidden feature": (20, 6, 3, 1, 40, "any"),
    "one of everything": (1, 1, 1, 1, 1, "any"),
    "all tokens to one expert": (300, 64, 1, 32, 32, "last"),
    "all tokens to the same experts": (300, 64, 5, 32, 32, "last"),
    "2048 tokens": (2048, 16, 4, 48, 40, "any"),
    "2048 tokens to one expert": (2048, 16, 1, 48, 40, "last"),
    "many experts": (40, 512, 10, 32, 16, "any"),
    "many experts of a token": (3, 160, 150, 32, 16, "any"),
}


@pytest.mark.parametrize("edge", EDGES)
def test_experts(cmodel, dtype, edge):
    tokens, count, top_k, hidden, inner, choice = EDGES[edge]
    weight = make_experts(count, hidden, inner, dtype)
    # A slice of wider rows, as a fused product leaves it.
    x = torch.randn(tokens, hidden + 7).to(dtype)[:, 3 : 3 + hidden]
    ids = torch.rand(tokens, count).topk(top_k, -1).indices.int()
    if choice == "last":
        ids = torch.arange(count - top_k, count, dtype=torch.int32).expand(tokens, top_k)
    arguments = (ids, torch.rand(tokens, top_k), "silu", torch.randn(tokens, hidden).to(dtype))
    result = cmodel.ops.fused_experts(x, cmodel.pack(weight, "experts"), *arguments)
    assert_close(result, REFERENCE.fused_experts(x, reference_weight(weight), *arguments))


@pytest.mark.parametrize("edge", ["no token", "one expert", "all experts", "2048 tokens", "many experts of a token"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_routing(cmodel, dtype, edge, scoring):
    tokens, count, top_k, *_ = EDGES[edge]
    x, router = torch.randn(tokens, 64).to(dtype), DenseWeight(torch.randn(count, 64) / 8)
    options = {"renormalize": True, "bias": torch.randn(count) / 4 if scoring == "sigmoid" else None}
    ids, weights = cmodel.ops.route_experts(x, cmodel.pack(router, "router"), top_k, scoring, **options)
    expected_ids, expected = REFERENCE.route_experts(x, reference_weight(router), top_k, scoring, **options)
    assert ids.shape == weights.shape == (tokens, top_k)
    # Logits that differ by a rounding error may change places.
    assert (ids != expected_ids).float().mean().nan_to_num() < 0.01
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_number_stays_in_its_rows(cmodel, dtype, bad):
    """In x, in the shared expert, and in weights of experts; the healthy rows have the bits that they had."""
    tokens, count, hidden = 70, 8, 48
    weight = make_experts(count, hidden, 40, dtype)
    packed, router = cmodel.pack(weight, "experts"), cmodel.pack(DenseWeight(torch.randn(count, hidden)), "router")
    x, shared, logits = torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, hidden).to(dtype), torch.randn(70, 1)

    def layer(x, shared, logits):
        ids, weights = cmodel.ops.route_experts(x, router, 3, "softmax", renormalize=True)
        return cmodel.ops.fused_experts(x, packed, ids, weights, "silu", shared, logits.to(dtype))

    healthy, ill = layer(x, shared, logits), [0, 13, 31, 32, 69]
    rest = [row for row in range(tokens) if row not in ill]
    for part in range(3):
        given = [x.clone(), shared.clone(), logits.clone()]
        given[part][ill, -1] = bad
        result = layer(*given)
        assert same_bits(result[rest], healthy[rest]), part
        # The sigmoid of an infinity is a number.
        assert part == 2 or not result[ill].isfinite().all(-1).any(), part
    broken = ExpertsWeight([*weight.gate_up[:-1], DenseWeight(weight.gate_up[-1].values * bad)], weight.down)
    ids = torch.randint(count - 1, (tokens, 3), dtype=torch.int32)
    ids[ill, 1] = count - 1
    arguments = (ids, torch.rand(tokens, 3), "silu", shared)
    result = cmodel.ops.fused_experts(x, cmodel.pack(broken, "experts"), *arguments)
    assert same_bits(result[rest], cmodel.ops.fused_experts(x, packed, *arguments)[rest])
    assert not result[ill].isfinite().all(-1).any()


# --- latent attention ---

HEADS, NOPE, V, LATENT, ROPE = 5, 12, 9, 36, 8


@pytest.fixture
def latents(cmodel, dtype, make_rope):
    """Attend over lengths (cached, new) in a cache that is full of NaN beyond them."""
    up = LatentUpWeight(DenseWeight((torch.randn(HEADS * (NOPE + V), LATENT) / 6).to(dtype)), HEADS, NOPE, dtype)
    spec, rope, packed = CacheSpec(1, (LATENT, ROPE), dtype, latent=True), make_rope(ROPE), cmodel.pack(up, "latent_up")

    def make(blocks, block_size):
        kv = cmodel.make_kv_cache(blocks, block_size, spec)
        kv.keys.fill_(float("nan"))
        kv.values.fill_(float("nan"))
        return kv

    def attend(ops, rows, kv, meta):
        weight = packed if ops is cmodel.ops else reference_weight(up)
        return ops.paged_latent_attention(*rows, kv, weight, meta, rope, (NOPE + ROPE) ** -0.5)

    def rows_of(tokens):
        return [torch.randn(tokens, width).to(dtype) for width in (HEADS * (NOPE + ROPE), LATENT, ROPE)]

    return make, attend, rows_of


@pytest.mark.parametrize(
    ("lengths", "block_size", "wider"),
    [
        ([(0, 1)], 1, 0),
        ([(0, 1)], 128, 5),
        ([(0, 300)], 1, 0),
        ([(0, 2048)], 16, 3),
        ([(0, 3100), (0, 7)], 16, 0),
        ([(0, 1025), (0, 1)], 1, 9),
        ([(0, 5)] * 40, 8, 300),
    ],
    ids=str,
)
def test_latent_attention_of_a_prompt_and_of_the_next_token(cmodel, latents, make_meta, lengths, block_size, wider):
    """wider: entries of the block table that no sequence uses, which name blocks full of NaN."""
    make, attend, rows_of = latents
    blocks = sum(-(-(length + 1) // block_size) for _, length in lengths) + 1
    kv, expected_kv = make(blocks, block_size), make(blocks, block_size)
    whole = make_meta([(0, length + 1) for _, length in lengths], blocks - 1, block_size)
    tables = torch.cat([whole.block_tables, torch.full((len(lengths), wider), blocks - 1)], dim=1).int()
    starts = torch.tensor([0, *(length + 1 for _, length in lengths)]).cumsum(0)
    for cached in (False, True):
        news = [1 if cached else length for _, length in lengths]
        order = sorted(range(len(news)), key=lambda index: news[index] > 1)  # decodes come first
        olds = [length if cached else 0 for _, length in lengths]
        slots = [whole.slot_mapping[starts[i] + olds[i] : starts[i] + olds[i] + news[i]] for i in order]
        meta = AttentionMeta(
            torch.tensor([news[i] for i in order]).int(),
            torch.tensor([olds[i] for i in order]).int(),
            tables[order],
            torch.cat(slots),
            max(old + new for old, new in zip(olds, news, strict=True)),
        )
        rows = rows_of(sum(news))
        result, expected = attend(cmodel.ops, rows, kv, meta), attend(REFERENCE, rows, expected_kv, meta)
        assert_close(result, expected)
        assert result.isfinite().all()


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_number_stays_in_its_sequence(cmodel, latents, make_meta, bad):
    """And there in the rows that see it. A step of decodes and prompts, then one of all the next tokens."""
    make, attend, rows_of = latents
    lengths = [(0, 1), (0, 1), (0, 30), (0, 40), (0, 1030)]
    blocks = sum(-(-(length + 1) // 16) for _, length in lengths)
    first = make_meta([(0, length + 1) for _, length in lengths], blocks, 16)
    starts = torch.tensor([length + 1 for _, length in lengths]).cumsum(0) - torch.tensor([n + 1 for _, n in lengths])
    keep = torch.cat([torch.arange(start, start + length) for start, (_, length) in zip(starts, lengths, strict=True)])
    counts = torch.tensor([length for _, length in lengths]).int()
    prompts = AttentionMeta(counts, torch.zeros_like(counts), first.block_tables, first.slot_mapping[keep], 1030)
    ones = torch.ones(5).int()
    following = AttentionMeta(ones, counts, first.block_tables, first.slot_mapping[starts + counts], 1031)
    rows, next_rows = rows_of(int(counts.sum())), rows_of(5)
    outs = []
    for ill in (False, True):
        given = [each.clone() for each in rows]
        if ill:
            given[0][0] = given[1][1, -1] = given[2][2 + 30 + 20] = bad  # q of one decode, latent of the other, k_rope
        kv: KVCache = make(blocks, 16)
        outs.append([attend(cmodel.ops, given, kv, prompts), attend(cmodel.ops, next_rows, kv, following)])
    (prompt, after), (ill_prompt, ill_after) = outs
    healthy = [row for row in range(len(prompt)) if row not in (0, 1) and not 52 <= row < 72]
    assert same_bits(ill_prompt[healthy], prompt[healthy])
    assert same_bits(ill_after[[0, 2, 4]], after[[0, 2, 4]])
    assert not ill_prompt[0].isfinite().any() and not ill_after[1].isfinite().all()
