"""Native kernels over many random shapes, on every instruction set, against the reference."""

import random

import pytest
import torch

from device.interface import CacheSpec, DenseWeight, KVCache
from device.reference import ReferenceOps, ReferenceWeight
from tests.device.closeness import assert_close
from tests.device.plain_cache import plain

REFERENCE = ReferenceOps()
SHAPES = 200
# What the reference says of long contexts takes it long, and is the same for every instruction set whose caches have
# one order, in which they are filled.
ATTENDED: dict[tuple[type[KVCache], int], torch.Tensor] = {}


@pytest.fixture
def draws():
    """A random generator and a dtype for each shape; sizes are often small, and now and then large."""
    torch.manual_seed(0)
    dtypes = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)
    return [(random.Random(seed), dtypes[seed % 4]) for seed in range(SHAPES)]


def size(generator, most):
    return max(1, int(most ** generator.random()))


def test_linear(cmodel, draws):
    for generator, dtype in draws:
        case = rows, inputs, outputs = size(generator, 150), size(generator, 3000), size(generator, 600)
        x, values = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        bias = torch.randn(outputs).to(dtype) if generator.random() < 0.5 else None
        expected = REFERENCE.linear(x, ReferenceWeight(DenseWeight(values)), bias)
        assert_close(cmodel.ops.linear(x, cmodel.pack(DenseWeight(values)), bias), expected, (dtype, case))


def test_gated_mlp(cmodel, draws):
    for generator, dtype in draws:
        case = rows, hidden, inner = size(generator, 100), size(generator, 500), size(generator, 600)
        x = torch.randn(rows, hidden).to(dtype)
        weights = [torch.randn(2 * inner, hidden) / hidden**0.5, torch.randn(hidden, inner)]
        canonical = [DenseWeight(weight.to(dtype)) for weight in weights]
        activation = generator.choice(["silu", "gelu", "gelu_tanh"])
        expected = REFERENCE.gated_mlp(x, *map(ReferenceWeight, canonical), activation)
        assert_close(cmodel.ops.gated_mlp(x, *map(cmodel.pack, canonical), activation), expected, (dtype, case))


def test_rms_norm(cmodel, draws):
    for generator, dtype in draws:
        case = rows, heads, dim = size(generator, 60), size(generator, 8), size(generator, 3000)
        x = torch.randn(rows, heads + 2, dim).to(dtype)[:, 1 : heads + 1]
        residual = torch.randn(x.shape).to(dtype) if generator.random() < 0.5 else None
        weight = torch.randn(dim).to(generator.choice([dtype, torch.float32]))
        y, total = cmodel.ops.rms_norm(x, weight, 1e-6, residual)
        expected, expected_total = REFERENCE.rms_norm(x, weight, 1e-6, residual)
        assert_close(y, expected, (dtype, case))
        assert torch.equal(total, expected_total), (dtype, case)


def test_embedding(cmodel, draws):
    for generator, dtype in draws:
        rows, dim, count = size(generator, 400), size(generator, 500), size(generator, 100)
        table = torch.randn(rows, dim).to(dtype)
        ids = torch.randint(rows, (count,), dtype=generator.choice([torch.int32, torch.int64]))
        expected = REFERENCE.embedding(ids, table)
        assert torch.equal(cmodel.ops.embedding(ids, table), expected)
        assert torch.equal(cmodel.ops.embedding(ids, cmodel.pack(DenseWeight(table))), expected)


def test_paged_attention(cmodel, draws, make_meta, make_rope, fill_cache):
    ropes = {dim: make_rope(dim, 5001) for dim in (32, 40, 64, 80, 96, 128, 192, 256)}
    for number, (generator, dtype) in enumerate(draws):
        dims = generator.choice([(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)])
        kv_heads, group = generator.choice([1, 2, 3]), generator.randint(1, 8)
        block_size = generator.choice([8, 16, 24, 32, 64, 128])
        lengths = [(size(generator, 5000) - 1, 1) for _ in range(generator.randint(0, 3))]
        if not lengths or generator.random() < 0.5:
            lengths.append((size(generator, 3000) - 1, size(generator, 200)))
        case = (dtype, dims, kv_heads, group, block_size, lengths)
        tokens = sum(new for _, new in lengths)
        blocks = sum(-(-sum(pair) // block_size) for pair in lengths)
        q = torch.randn(tokens, kv_heads * group, dims[0]).to(dtype)
        k, v = (torch.randn(tokens, kv_heads, dim).to(dtype) for dim in dims)
        kv = cmodel.make_kv_cache(blocks, block_size, CacheSpec(kv_heads, dims, dtype))
        fill_cache(kv, generator.randint(0, 99))
        rope = generator.choice([None, ropes[dims[0]], ropes.get(dims[0] // 2)])
        arguments = (make_meta(lengths, blocks, block_size), rope, dims[0] ** -0.5, generator.choice([None, None, 100]))
        if (type(kv), number) not in ATTENDED:
            ATTENDED[type(kv), number] = REFERENCE.paged_attention(q, k, v, plain(kv), *arguments)
        assert_close(cmodel.ops.paged_attention(q, k, v, kv, *arguments), ATTENDED[type(kv), number], case)
