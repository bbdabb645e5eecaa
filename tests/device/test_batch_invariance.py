"""A row's bits depend on that row alone: not on the rows beside it, the batch's size, chunks, or threads."""

import pytest
import torch

from device.cmodel.device import CmodelDevice
from device.interface import (
    AttentionMeta,
    CacheSpec,
    DenseWeight,
    ExpertsWeight,
    Float8Weight,
    IntWeight,
    KVCache,
    LatentUpWeight,
)

SIZES = (1, 2, 3, 7, 16, 33, 200)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threaded(cmodel, monkeypatch):
    """Call fn with the device on 1 thread and on 2, and return both results."""

    def run(fn):
        results = []
        for threads in ("1", "2"):
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
            results.append(fn(CmodelDevice()))
        return results

    return run


def assert_rows_alone(threaded, fn, rows):
    """fn(device, slice) computes some of the rows."""
    one, two = threaded(lambda device: fn(device, slice(0, rows)))
    assert torch.equal(one, two)
    for size in SIZES:
        start = min(5, rows - size)
        part_one, part_two = threaded(lambda device, at=slice(start, start + size): fn(device, at))
        assert torch.equal(part_one, one[start : start + size]), f"{size} rows on 1 thread"
        assert torch.equal(part_two, one[start : start + size]), f"{size} rows on 2 threads"


@pytest.mark.parametrize(("in_features", "out_features"), [(896, 160), (1000, 33), (67, 300)])
def test_linear(cmodel, threaded, dtype, in_features, out_features):
    x, weight = torch.randn(200, in_features).to(dtype), torch.randn(out_features, in_features).to(dtype)
    bias, packed = torch.randn(out_features).to(dtype), cmodel.pack(DenseWeight(weight))
    assert_rows_alone(threaded, lambda device, at: device.ops.linear(x[at], packed, bias), 200)


def test_linear_of_many_rows(cmodel, threaded):
    x, packed = torch.randn(1100, 72).bfloat16(), cmodel.pack(DenseWeight(torch.randn(40, 72).bfloat16()))
    whole = cmodel.ops.linear(x, packed)
    for at in (slice(1000, 1100), slice(1023, 1025), slice(1099, 1100)):
        assert torch.equal(cmodel.ops.linear(x[at], packed), whole[at])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("intermediate", [64, 45])
def test_gated_mlp(cmodel, threaded, dtype, activation, intermediate):
    x = torch.randn(200, 100).to(dtype)
    gate_up = cmodel.pack(DenseWeight(torch.randn(2 * intermediate, 100).to(dtype)))
    down = cmodel.pack(DenseWeight(torch.randn(100, intermediate).to(dtype)))
    assert_rows_alone(threaded, lambda device, at: device.ops.gated_mlp(x[at], gate_up, down, activation), 200)


def test_rms_norm(threaded, dtype):
    x, residual, weight = torch.randn(200, 901).to(dtype), torch.randn(200, 901).to(dtype), torch.randn(901).to(dtype)
    assert_rows_alone(threaded, lambda device, at: device.ops.rms_norm(x[at], weight, 1e-6)[0], 200)
    for result in (0, 1):
        assert_rows_alone(
            threaded, lambda device, at, i=result: device.ops.rms_norm(x[at], weight, 1e-6, residual[at])[i], 200
        )


def test_embedding(threaded, dtype):
    table, ids = torch.randn(50, 33).to(dtype), torch.randint(50, (200,))
    assert_rows_alone(threaded, lambda device, at: device.ops.embedding(ids[at], table), 200)


def test_sample(threaded, dtype, sample_params):
    logits = torch.randn(200, 1003).to(dtype) * 4
    params = {
        "temperature": torch.rand(200).round(decimals=1),
        "top_k": torch.randint(0, 100, (200,), dtype=torch.int32),
        "top_p": 0.5 + torch.rand(200) / 2,
        "min_p": torch.rand(200) / 20,
        "repetition": 1 + torch.rand(200),
        "seeds": torch.arange(200) * 7919,
        "positions": torch.arange(200),
    }

    def fn(device, at):
        rows = at.stop - at.start
        penalties = {
            "penalty_rows": torch.arange(rows).repeat_interleave(2),
            "penalty_ids": torch.stack(
                [torch.arange(at.start, at.stop), torch.arange(at.start, at.stop) + 500], 1
            ).flatten(),
            "output_counts": torch.ones(2 * rows, dtype=torch.int32),
        }
        own = {name: value[at] for name, value in params.items()}
        result = device.ops.sample(logits[at], sample_params(rows, num_logprobs=5, **own, **penalties))
        columns = (result.token_ids[:, None], result.logprobs[:, None], result.ranks[:, None], result.top_logprobs)
        return torch.cat([column.double() for column in (*columns, result.top_ids)], dim=1)

    assert_rows_alone(threaded, fn, 200)


def test_experts(cmodel, threaded, dtype):
    experts, x = 8, torch.randn(200, 40).to(dtype)
    gate_up = [DenseWeight(torch.randn(64, 40).to(dtype)) for _ in range(experts)]
    down = [DenseWeight(torch.randn(40, 32).to(dtype)) for _ in range(experts)]
    packed = cmodel.pack(ExpertsWeight(gate_up, down), "experts")
    router = cmodel.pack(DenseWeight(torch.randn(experts, 40)), "router")

    def fn(device, at):
        ids, weights = device.ops.route_experts(x[at], router, 3, "softmax", renormalize=True)
        return device.ops.fused_experts(x[at], packed, ids, weights, "silu")

    assert_rows_alone(threaded, fn, 200)


def random_weight(kind, outputs, inputs, dtype):
    """A canonical weight: dense, or of a kind of whole numbers in groups of 32, or of float8 in groups of 64."""
    if kind == "dense":
        return DenseWeight((torch.randn(outputs, inputs) / inputs**0.5).to(dtype))
    size = 64 if kind == "float8" else 32
    groups = -(-inputs // size)
    scales = torch.rand(outputs, groups) / inputs**0.5 / (20 if kind == "float8" else 4)
    if kind == "float8":
        return Float8Weight((torch.randn(outputs, inputs) * 20).to(torch.float8_e4m3fn), scales, size)
    bits = 8 if kind == "int8" else 4
    codes = torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8)
    order = torch.randperm(inputs).int() if "ordered" in kind else None
    zeros = torch.randint(2**bits, (outputs, groups), dtype=torch.uint8)
    return IntWeight(codes, scales / (16 if bits == 8 else 1), zeros, size, bits, order)


ROUTERS = {
    "softmax": {"scoring": "softmax", "renormalize": False},
    "groups": {"scoring": "softmax", "renormalize": False, "scale": 1.5, "groups": 4, "top_groups": 2},
    "noaux_tc": {"scoring": "sigmoid", "renormalize": True, "scale": 2.5, "groups": 4, "top_groups": 2},
}


@pytest.mark.parametrize("kind", ["dense", "int4", "int4 ordered", "int8", "float8"])
@pytest.mark.parametrize("routing", ROUTERS)
def test_experts_of_any_kind(cmodel, threaded, dtype, kind, routing):
    """With a shared expert, more experts than rows of the small batches, and a router in float32."""
    hidden, inner, experts, options = 96, 64, 24, dict(ROUTERS[routing])
    x, shared = (torch.randn(200, hidden).to(dtype) for _ in range(2))
    logits = torch.randn(200, 1).to(dtype) if routing == "softmax" else None
    gate_up = [random_weight(kind, 2 * inner, hidden, dtype) for _ in range(experts)]
    down = [random_weight(kind, hidden, inner, dtype) for _ in range(experts)]
    packed = cmodel.pack(ExpertsWeight(gate_up, down), "experts")
    router = cmodel.pack(DenseWeight(torch.randn(experts, hidden) / 4), "router")
    if routing == "noaux_tc":
        options["bias"] = torch.randn(experts) / 4

    def fn(device, at):
        ids, weights = device.ops.route_experts(x[at], router, 5, **options)
        own = None if logits is None else logits[at]
        out = device.ops.fused_experts(x[at], packed, ids, weights, "silu", shared[at], own)
        return torch.cat([ids.float(), weights, out.float()], dim=1)

    assert_rows_alone(threaded, fn, 200)


# --- attention: one sequence, computed whole, in chunks, token by token, in company and in other blocks ---

LENGTH = 220
HEADS, KV_HEADS = 6, 2


@pytest.fixture(params=[(64, None), (80, 100)], ids=["64", "80 with a window"])
def sequence(request, dtype):
    dim, window = request.param
    qkv = torch.randn(LENGTH, HEADS + 2 * KV_HEADS, dim).to(dtype)
    return *qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1), window


@pytest.fixture
def attend(sequence, make_meta, make_rope, dtype):
    """Compute the sequence in chunks of the given sizes, each in the company of the given (cached, new) lengths."""
    q, k, v, window = sequence
    dim = q.shape[2]
    rope = make_rope(dim)

    def run(device, chunks, block_size=16, company=((), ())):
        before, after = company
        blocks = sum(-(-sum(pair) // block_size) for pair in (*before, *after)) + -(-LENGTH // block_size) + 2
        kv = device.make_kv_cache(blocks, block_size, CacheSpec(KV_HEADS, (dim, dim), dtype))
        kv.keys.fill_(0.5)
        kv.values.fill_(0.25)
        outs, done = [], 0
        for chunk in chunks:
            # The same total for every chunk, so that the sequence keeps its blocks.
            meta = make_meta([*before, (done, LENGTH - done), *after], blocks, block_size)
            whole_slots, lengths = meta.slot_mapping, meta.input_lengths.clone()
            first = sum(new for _, new in before)
            lengths[len(before)] = chunk
            slots = torch.cat([whole_slots[: first + chunk], whole_slots[first + LENGTH - done :]])
            part = type(meta)(lengths, meta.cached_lengths, meta.block_tables, slots, meta.max_length)
            own = slice(done, done + chunk)
            rows = [torch.cat([torch.randn(first, *x.shape[1:]).to(dtype), x[own]]) for x in (q, k, v)]
            rest = int(lengths.sum()) - first - chunk
            rows = [torch.cat([x, torch.randn(rest, *x.shape[1:]).to(dtype)]) for x in rows]
            out = device.ops.paged_attention(*rows, kv, part, rope, dim**-0.5, window)
            outs.append(out[first : first + chunk])
            done += chunk
        assert done == LENGTH
        return torch.cat(outs)

    return run


def test_attention_threads(threaded, attend):
    one, two = threaded(lambda device: attend(device, [LENGTH]))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "chunks",
    [[1] * LENGTH, [7] * 31 + [3], [16] * 13 + [12], [33] * 6 + [22], [200] + [1] * 20, [2, 3, 15, 200]],
    ids=["1", "7", "16", "33", "200 then 1", "mixed"],
)
def test_attention_chunks(cmodel, attend, chunks):
    assert torch.equal(attend(cmodel, chunks), attend(cmodel, [LENGTH]))


@pytest.mark.parametrize("block_size", [1, 8, 10, 128])
def test_attention_block_sizes(cmodel, attend, block_size):
    assert torch.equal(attend(cmodel, [100, 120], block_size), attend(cmodel, [LENGTH]))


def test_attention_company(cmodel, attend):
    company = ([(5, 1), (64, 1), (200, 1)], [(0, 3), (70, 90)])
    alone = attend(cmodel, [LENGTH])
    assert torch.equal(attend(cmodel, [LENGTH], company=company), alone)
    assert torch.equal(attend(cmodel, [99, 1, 1, 119], company=company), alone)


def test_attention_after_the_sequence_moved_to_other_blocks(cmodel, attend, make_meta, make_rope, sequence, dtype):
    q, k, v, window = sequence
    dim, rope = q.shape[2], make_rope(q.shape[2])
    outs = []
    for seed in (1, 2):
        kv: KVCache = cmodel.make_kv_cache(40, 16, CacheSpec(KV_HEADS, (dim, dim), dtype))
        meta = make_meta([(0, LENGTH)], 40, 16, seed)
        outs.append(cmodel.ops.paged_attention(q, k, v, kv, meta, rope, dim**-0.5, window))
    assert torch.equal(*outs)


def test_attention_over_spans_that_threads_share(threaded, dtype, make_meta, make_rope):
    """The last row of a long sequence: in the prefill, and in steps with other sequences or without."""
    lengths, dim, blocks = (2600, 1024, 1025, 4000), 64, 600
    meta = make_meta([(0, length) for length in lengths], blocks, 16)
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), HEADS + 2 * KV_HEADS, dim).to(dtype).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def last_rows(device):
        """The outputs of the last tokens: of the prefill, and of each of the steps after it."""
        kv = device.make_kv_cache(blocks, 16, CacheSpec(KV_HEADS, (dim, dim), dtype))

        def attend(sequences, new):
            """The last `new` tokens of some sequences, all for None; the outputs of their last ones."""
            counts = [new or lengths[i] for i in sequences]
            ends = [starts[i] + lengths[i] for i in sequences]
            rows = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
            cached = torch.tensor([lengths[i] - count for i, count in zip(sequences, counts, strict=True)])
            part = AttentionMeta(
                torch.tensor(counts).int(), cached.int(), meta.block_tables[sequences], meta.slot_mapping[rows], 4000
            )
            out = device.ops.paged_attention(*(x[rows] for x in qkv), kv, part, make_rope(dim), dim**-0.5)
            return out[torch.tensor(counts).cumsum(0) - 1]

        prefill = attend([0, 1, 2, 3], None)
        ways = ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2, 3]])
        return [prefill, *(torch.cat([attend(sequences, 1) for sequences in steps]) for steps in ways)]

    one, two = threaded(last_rows)
    for rows in (*one, *two):
        assert torch.equal(rows, one[0])


# --- latent attention: the same of it, with queries that it makes itself ---


@pytest.fixture(
    params=[(3, 24, 20, 100, 12, 40), (16, 128, 128, 512, 64, 96)],
    ids=["odd", "as DeepSeek"],
)
def latents(request, dtype):
    """Sizes (heads, nope_dim, v_dim, latent_dim, rope_dim, q_lora); and what q is made of, latent and k_rope."""
    *_, latent, rope, lora = request.param
    return request.param, [torch.randn(LENGTH, width).to(dtype) for width in (lora, latent, rope)]


@pytest.fixture
def attend_latents(latents, make_meta, make_rope, dtype):
    """As `attend`, of latents."""
    (heads, nope, v_dim, latent, rope_dim, lora), rows = latents
    rope = make_rope(rope_dim, interleaved=True)
    up = random_weight("dense", heads * (nope + v_dim), latent, dtype)
    lift = random_weight("dense", heads * (nope + rope_dim), lora, dtype)

    def run(device, chunks, block_size=16, company=((), ()), seed=0):
        before, after = company
        kv_up, q_up = device.pack(LatentUpWeight(up, heads, nope, dtype), "latent_up"), device.pack(lift, "qkv")
        blocks = sum(-(-sum(pair) // block_size) for pair in (*before, *after)) + -(-LENGTH // block_size) + 2
        kv = device.make_kv_cache(blocks, block_size, CacheSpec(1, (latent, rope_dim), dtype, latent=True))
        kv.keys.fill_(0.5)
        kv.values.fill_(0.25)
        outs, done = [], 0
        for chunk in chunks:
            meta = make_meta([*before, (done, LENGTH - done), *after], blocks, block_size, seed)
            lengths, first = meta.input_lengths.clone(), sum(new for _, new in before)
            lengths[len(before)] = chunk
            slots = torch.cat([meta.slot_mapping[: first + chunk], meta.slot_mapping[first + LENGTH - done :]])
            part = AttentionMeta(lengths, meta.cached_lengths, meta.block_tables, slots, meta.max_length)
            rest = int(lengths.sum()) - first - chunk
            others = [[torch.randn(count, x.shape[1]).to(dtype) for count in (first, rest)] for x in rows]
            own = [x[done : done + chunk] for x in rows]
            batch = [torch.cat([head, x, tail]) for x, (head, tail) in zip(own, others, strict=True)]
            scale = (nope + rope_dim) ** -0.5
            out = device.ops.paged_latent_attention(*batch, kv, kv_up, part, rope, scale, q_up)
            outs.append(out[first : first + chunk].clone())
            done += chunk
        assert done == LENGTH
        return torch.cat(outs)

    return run


@pytest.mark.parametrize(
    "chunks",
    [[1] * LENGTH, [16] * 13 + [12], [100, 100, 20], [2, 3, 15, 200]],
    ids=["1", "16", "100", "mixed"],
)
def test_latent_attention_chunks(cmodel, attend_latents, chunks):
    assert torch.equal(attend_latents(cmodel, chunks), attend_latents(cmodel, [LENGTH]))


def test_latent_attention_company(cmodel, attend_latents):
    company = ([(5, 1), (64, 1), (200, 1)], [(0, 3), (70, 90)])
    alone = attend_latents(cmodel, [LENGTH])
    assert torch.equal(attend_latents(cmodel, [LENGTH], company=company), alone)
    assert torch.equal(attend_latents(cmodel, [99, 1, 1, 119], company=company), alone)
    assert torch.equal(attend_latents(cmodel, [LENGTH], seed=5), alone)
