"""Latent attention by native kernels: against the reference, and to the last bit against itself."""

import random

import pytest
import torch

from device.interface import CacheSpec, DenseWeight, KVCache, LatentUpWeight
from device.reference import ReferenceOps, reference_weight

REFERENCE = ReferenceOps()
CASES = 50  # times 4 seeds


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
    for seed in range(4 * CASES):
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
