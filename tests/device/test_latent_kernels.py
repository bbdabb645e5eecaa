"""Latent attention by native kernels: against the reference, and to the last bit against itself."""

import random
from dataclasses import replace

import pytest
import torch

from device.cmodel.device import CmodelDevice
from device.interface import AttentionMeta, CacheSpec, DenseWeight, Float8Weight, IntWeight, KVCache, LatentUpWeight
from device.operator_profile import operator_cost
from device.reference import ReferenceOps, dequantize, reference_weight

REFERENCE = ReferenceOps()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threaded(cmodel, monkeypatch):
    """What fn gives for the device on 1 thread, and on 2 and 5."""

    def run(fn):
        results = []
        for threads in ("1", "2", "5"):
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
            results.append(fn(CmodelDevice()))
        return results

    return run


def assert_close(result, expected):
    if result.dtype == torch.float32:
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(result.float(), expected.float(), rtol=3e-2, atol=3e-2)


class Case:
    """Heads of some sizes, and the rows of some tokens."""

    def __init__(self, dtype, heads, nope, rope, v, latent, tokens, make_rope, interleaved=False, rotary=None):
        self.dtype, self.heads, self.v, self.scale = dtype, heads, v, (nope + rope) ** -0.5
        self.spec = CacheSpec(1, (latent, rope), dtype, replicated=True, latent=True)
        up = torch.randn(heads * (nope + v), latent) / latent**0.5
        self.up = LatentUpWeight(DenseWeight(up.to(dtype)), heads, nope, dtype)
        self.q = torch.randn(tokens, heads * (nope + rope)).to(dtype)
        self.latent = torch.randn(tokens, latent).to(dtype)
        self.k_rope = torch.randn(tokens, rope).to(dtype)
        self.rope = make_rope(rotary or rope, interleaved=interleaved)

    def attend(self, ops, kv, packed, step, rows=slice(None), **given):
        rows = self.q[rows], self.latent[rows], self.k_rope[rows]
        return ops.paged_latent_attention(*rows, kv, packed, step, self.rope, self.scale, **given)


def test_sizes_at_random(cmodel, make_meta, make_rope, fill_cache):
    """200 of them: the common ones, and any others; decodes, prefills and both; positions in cached blocks and new."""
    for seed in range(200):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        dtype = draw.choice([torch.bfloat16, torch.float16, torch.float32])
        heads = draw.choice([1, 2, 3, 5, 8, 16, 23, 48])
        nope, v = draw.randint(1, 40), draw.randint(1, 40)
        latent, rope = draw.choice([(24, 6), (64, 16), (draw.randint(1, 90), 2 * draw.randint(1, 20))])
        if seed % 25 == 0:
            nope, rope, v, latent, heads = 128, 64, 128, 512, draw.choice([2, 16])
        block_size = draw.choice([1, 3, 8, 16, 64, 100])
        decodes = [(draw.randint(0, 150), 1) for _ in range(draw.randint(0, 4))]
        prefills = [(draw.choice([0, draw.randint(0, 100)]), draw.randint(2, 90)) for _ in range(draw.randint(0, 2))]
        lengths = decodes + prefills or [(draw.choice([0, 1023, 1024, 1300]), 1)]
        tokens = sum(new for _, new in lengths)
        rotary = draw.choice([None, None, max(2, rope // 4 * 2)])
        case = Case(dtype, heads, nope, rope, v, latent, tokens, make_rope, draw.random() < 0.5, rotary)
        blocks = sum(-(-sum(pair) // block_size) for pair in lengths) + 1
        kv, meta = cmodel.make_kv_cache(blocks, block_size, case.spec), make_meta(lengths, blocks, block_size, seed)
        fill_cache(kv, seed)
        expected_kv = KVCache(kv.keys.clone(), kv.values.clone())
        result = case.attend(cmodel.ops, kv, cmodel.pack(case.up, "latent_up"), meta)
        expected = case.attend(REFERENCE, expected_kv, reference_weight(case.up), meta)
        assert result.shape == (tokens, heads, v)
        try:
            assert_close(result, expected)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
        assert torch.equal(kv.keys, expected_kv.keys)
        torch.testing.assert_close(kv.values, expected_kv.values)


# --- the last bit: one sequence whole, in chunks, token by token, in company, on any threads ---

SIZES = {
    "any": (3, 10, 6, 7, 24),
    "one head": (1, 12, 8, 16, 40),
    "groups of heads": (96, 4, 2, 3, 16),
    "DeepSeek": (16, 128, 64, 128, 512),
}


@pytest.fixture(params=SIZES, ids=str)
def sequence(request, dtype, make_rope):
    """A case with the tokens of one sequence, and steps that compute some of them."""
    length = 140
    return Case(dtype, *SIZES[request.param], length, make_rope), length


def computed(device, case, make_meta, chunks, *, block_size=16, before=(), after=()):
    """The sequence in chunks of these sizes, each among others of these (cached, new) lengths."""
    length = sum(chunks)
    blocks = sum(-(-sum(pair) // block_size) for pair in (*before, (0, length), *after)) + 2
    kv, packed = device.make_kv_cache(blocks, block_size, case.spec), device.pack(case.up, "latent_up")
    kv.keys.fill_(0.5)
    kv.values.fill_(0.25)
    first, rest = (sum(new for _, new in others) for others in (before, after))
    outs, done = [], 0
    for chunk in chunks:
        # The same total for every chunk, so that the sequence keeps its blocks.
        meta = make_meta([*before, (done, length - done), *after], blocks, block_size)
        lengths = meta.input_lengths.clone()
        lengths[len(before)] = chunk
        slots = torch.cat([meta.slot_mapping[: first + chunk], meta.slot_mapping[first + length - done :]])
        part = AttentionMeta(lengths, meta.cached_lengths, meta.block_tables, slots, meta.max_length)
        # The others have the rows of some token of the sequence.
        rows = torch.cat([torch.full((first,), 3), torch.arange(done, done + chunk), torch.full((rest,), 5)])
        outs.append(case.attend(device.ops, kv, packed, part, rows)[first : first + chunk])
        done += chunk
    return torch.cat(outs)


@pytest.mark.parametrize(
    "chunks",
    [[1] * 140, [7] * 20, [16] * 8 + [12], [100] + [1] * 40, [2, 3, 15, 120]],
    ids=["1", "7", "16", "100 then 1", "mixed"],
)
def test_chunks(cmodel, sequence, make_meta, chunks):
    case, length = sequence
    whole = computed(cmodel, case, make_meta, [length])
    assert torch.equal(computed(cmodel, case, make_meta, chunks), whole)


def test_threads_and_company_and_blocks(threaded, sequence, make_meta):
    case, length = sequence
    company = {"before": [(5, 1), (64, 1), (130, 1)], "after": [(0, 3), (70, 30)]}

    def all_ways(device):
        whole = computed(device, case, make_meta, [length])
        assert torch.equal(computed(device, case, make_meta, [length], **company), whole)
        assert torch.equal(computed(device, case, make_meta, [99, 1, 1, 39], **company), whole)
        for block_size in (1, 10, 128):
            assert torch.equal(computed(device, case, make_meta, [length], block_size=block_size), whole)
        return whole

    one, two, five = threaded(all_ways)
    assert torch.equal(one, two) and torch.equal(one, five)


def test_spans_that_threads_share(threaded, dtype, make_meta, make_rope):
    """The last row of a long sequence: in a prefill, and alone with spans of 1024 positions for the threads."""
    length = 2600
    case = Case(dtype, 2, 8, 4, 8, 32, length, make_rope)

    def ways(device):
        whole, alone = (computed(device, case, make_meta, chunks)[-1] for chunks in ([length], [length - 1, 1]))
        return torch.stack([whole, alone])

    results = threaded(ways)
    for rows in torch.cat(results):
        assert torch.equal(rows, results[0][0])


def test_more_rows_than_are_kept_at_a_time(cmodel, make_meta, make_rope):
    """64 tokens' queries in latent space, here."""
    case = Case(torch.float32, 128, 4, 2, 3, 512, 150, make_rope)
    whole = computed(cmodel, case, make_meta, [150])
    assert torch.equal(computed(cmodel, case, make_meta, [40, 110]), whole)
    kv, meta = KVCache(torch.zeros(10, 16, 1, 512), torch.zeros(10, 16, 1, 2)), make_meta([(0, 150)], 10, 16)
    assert_close(whole, case.attend(REFERENCE, kv, reference_weight(case.up), meta))


# --- around the kernel ---


def test_what_lies_beyond_a_sequence_does_not_disturb(cmodel, dtype, make_meta, make_rope):
    """The slots behind the last token hold NaN, as uninitialised memory may."""
    case = Case(dtype, 3, 10, 6, 7, 24, 40, make_rope)
    kv, packed = cmodel.make_kv_cache(6, 16, case.spec), cmodel.pack(case.up, "latent_up")
    kv.keys.fill_(float("nan"))
    kv.values.fill_(float("nan"))
    for lengths in ([(0, 20)], [(20, 1), (0, 5)], [(21, 12)], [(33, 2)]):
        rows = slice(0, sum(new for _, new in lengths))
        assert not case.attend(cmodel.ops, kv, packed, make_meta(lengths, 6, 16), rows).isnan().any()


@pytest.mark.parametrize("with_q_up", [False, True])
def test_a_replay_has_the_bits_of_the_call(cmodel, dtype, decode_inputs, make_rope, fill_cache, with_q_up):
    size, heads, nope, rope = 9, 5, 12, 8
    case = Case(dtype, heads, nope, rope, 10, 40, size, make_rope)
    packed, q_up = cmodel.pack(case.up, "latent_up"), None
    if with_q_up:
        case.q = torch.randn(size, 20).to(dtype)
        q_up = cmodel.pack(DenseWeight(torch.randn(heads * (nope + rope), 20).to(dtype) / 5))
    kv = cmodel.make_kv_cache(size * 3, 16, case.spec)
    fill_cache(kv)
    inputs = decode_inputs(torch.randint(40, (size,)).tolist(), size * 3, 16)
    assert inputs.positions is inputs.cached_lengths

    def fn():
        step = cmodel.prepare(inputs, [case.rope])
        return case.attend(cmodel.ops, kv, packed, step, q_up=q_up)

    replay = cmodel.capture(fn, size)
    for rows in (size, 1, 4, size):
        inputs.cached_lengths.copy_(inputs.cached_lengths // 16 * 16 + torch.randint(16, (size,)))
        inputs.slot_mapping.copy_(inputs.slot_mapping // 16 * 16 + inputs.cached_lengths % 16)
        expected = fn()
        fill_cache(kv)
        expected = fn()
        fill_cache(kv)
        assert torch.equal(replay(rows), expected[:rows])


def test_blocks_are_read_and_written(cmodel, dtype, make_meta, make_rope, fill_cache):
    case = Case(dtype, 3, 10, 6, 7, 24, 20, make_rope)
    kv, other = (cmodel.make_kv_cache(5, 8, case.spec) for _ in range(2))
    packed, meta = cmodel.pack(case.up, "latent_up"), make_meta([(0, 19)], 5, 8)
    case.attend(cmodel.ops, kv, packed, meta, slice(0, 19))
    fill_cache(other)
    moved = [4, 0, 2]
    blocks = cmodel.read_blocks(kv, meta.block_tables[0].tolist())
    assert blocks.shape == (3, 8 * case.spec.token_bytes)
    cmodel.write_blocks(other, moved, blocks)
    outs = []
    for cache, table in ((kv, meta.block_tables), (other, torch.tensor([moved], dtype=torch.int32))):
        slot = table[:, 2] * 8 + 3
        step = AttentionMeta(torch.ones(1).int(), torch.full((1,), 19).int(), table, slot, 20)
        outs.append(case.attend(cmodel.ops, cache, packed, step, slice(19, 20)))
    assert torch.equal(*outs)


def int_weight(bits, order):
    rows, inputs, group = 3 * 17, 64, 32
    return IntWeight(
        torch.randint(256, (rows, inputs * bits // 8), dtype=torch.uint8),
        torch.rand(rows, inputs // group) / 8,
        torch.randint(1 << bits, (rows, inputs // group), dtype=torch.uint8),
        group,
        bits,
        torch.randperm(inputs).int() if order else None,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: int_weight(4, order=False),
        lambda: int_weight(4, order=True),
        lambda: int_weight(8, order=False),
        lambda: Float8Weight(torch.randn(51, 64).to(torch.float8_e4m3fn), torch.rand(51, 1) / 4),
        lambda: DenseWeight(torch.randn(51, 64)),
    ],
    ids=["int4", "int4 in an order", "int8", "float8", "of another dtype"],
)
def test_quantized_weights_are_dequantized_once(cmodel, dtype, make_meta, make_rope, make):
    """The bits are those of the dense weight in the dtype of activations, and sizes are known without values."""
    case = Case(dtype, 3, 10, 6, 7, 64, 9, make_rope)
    weight = make()
    dense = replace(case.up, weight=DenseWeight(dequantize(weight).to(dtype)))
    outs, sizes, meta = [], [], make_meta([(0, 9)], 2, 8)
    for up in (replace(case.up, weight=weight), dense):
        packed = cmodel.pack(up, "latent_up")
        outs.append(case.attend(cmodel.ops, cmodel.make_kv_cache(2, 8, case.spec), packed, meta))
        sizes.append(packed.nbytes)
    assert torch.equal(*outs)
    tensors = {name: each.to("meta") for name, each in vars(weight).items() if isinstance(each, torch.Tensor)}
    tensors.pop("order", None)
    planned = cmodel.pack(replace(case.up, weight=replace(weight, **tensors)), "latent_up")
    assert [planned.nbytes] * 2 == sizes
    assert (planned.heads, planned.nope_dim, planned.v_dim) == (3, 10, 7)
    assert (planned.out_features, planned.in_features) == (51, 64)


def test_costs_are_those_of_the_operator(native, make_meta, make_rope):
    """Latents are read once, as are W_UK and W_UV, with which every token is multiplied."""
    # Of sizes that panels do not pad.
    case = Case(torch.float32, 4, 32, 8, 32, 64, 11, make_rope)
    kv, packed = native.make_kv_cache(8, 16, case.spec), native.pack(case.up, "latent_up")
    meta = make_meta([(30, 1), (5, 1), (2, 9)], 8, 16)
    native.start_profile(10, 2)
    try:
        out = case.attend(native.ops, kv, packed, meta)
        (record,) = [each for each in native.profile_records() if each.operator.startswith("paged")]
    finally:
        native.stop_profile()
    given = {"q": case.q, "latent": case.latent, "k_rope": case.k_rope, "kv": kv, "kv_up": packed, "step": meta}
    assert (record.bytes, record.operations) == operator_cost("paged_latent_attention", given, out)
    positions = 31 + 6 + sum(range(3, 12))
    assert record.operations == 2 * positions * 4 * (2 * 64 + 8) + 2 * 11 * 4 * 64 * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"q": given["q"][:, :-1]}, "do not fit 3 heads with 10 . 7 channels of latents of 24"),
        (lambda given: {"latent": given["latent"].double()}, "one dtype expected"),
        (lambda given: {"step": replace(given["step"], slot_mapping=given["step"].slot_mapping + 99)}, "a slot lies"),
        (lambda given: {"step": replace(given["step"], input_lengths=torch.tensor([8]).int())}, "sum to 8"),
        (lambda given: {"kv": KVCache(given["kv"].keys.mT, given["kv"].values)}, "do not fit"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(native, make_meta, make_rope, change, message):
    case = Case(torch.float32, 3, 10, 6, 7, 24, 9, make_rope)
    given = {
        "q": case.q, "latent": case.latent, "k_rope": case.k_rope, "step": make_meta([(0, 9)], 2, 8),
        "kv": native.make_kv_cache(2, 8, case.spec), "kv_up": native.pack(case.up, "latent_up"),
        "rope": case.rope, "scale": 1.0,
    }  # fmt: skip
    native.ops.paged_latent_attention(**given)
    with pytest.raises(ValueError, match=message):
        native.ops.paged_latent_attention(**given | change(given))
