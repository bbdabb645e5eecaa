"""Attention in both directions within segments, on every instruction set, against the reference."""

import random

import pytest
import torch

from device.cmodel.device import CmodelDevice
from device.interface import Rotation
from device.reference import ReferenceOps
from tests.device.closeness import assert_close

REFERENCE = ReferenceOps()
DTYPES = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)


def size(generator, most):
    return max(1, int(most ** generator.random()))


def random_rotation(tokens, half):
    angles = torch.rand(tokens, half) * 100
    return Rotation(angles.cos(), angles.sin())


def random_qkv(tokens, heads, dim, dtype):
    """Cut from one tensor, as of a fused projection."""
    return torch.randn(tokens, 3, heads, dim).to(dtype).unbind(1)


def random_segments(generator):
    """Many small ones, windows of one size, or a few large ones."""
    kind = generator.choice(["small", "windows", "large"])
    if kind == "small":
        return [generator.randint(0, 40) for _ in range(generator.randint(1, 12))]
    if kind == "windows":
        return [generator.choice([16, 49, 64])] * generator.randint(1, 6)
    return [size(generator, 1500) for _ in range(generator.randint(1, 3))]


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 280), marks=pytest.mark.slow)], ids=str)
def test_random_shapes(cmodel, seeds):
    torch.manual_seed(0)
    for seed in seeds:
        generator, dtype = random.Random(seed), DTYPES[seed % 4]
        segments, heads = random_segments(generator), generator.randint(1, 5)
        dim = generator.choice([64, 80, 72, 8, 16, 96, 128, generator.randint(1, 100)])
        half = generator.choice([0, dim // 2, dim // 4])
        case = dtype, segments, heads, dim, half
        q, k, v = random_qkv(sum(segments), heads, dim, dtype)
        rotation = random_rotation(sum(segments), half) if half else None
        arguments = q, k, v, segments, dim**-0.5, rotation
        assert_close(cmodel.ops.dense_attention(*arguments), REFERENCE.dense_attention(*arguments), case)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [[4096], [64] * 40 + [8, 3000, 1]], ids=["one", "mixed"])
def test_thousands_of_tokens(cmodel, dtype, segments):
    torch.manual_seed(0)
    q, k, v = random_qkv(sum(segments), 2, 80, dtype)
    arguments = q, k, v, segments, 80**-0.5, random_rotation(sum(segments), 40)
    assert_close(cmodel.ops.dense_attention(*arguments), REFERENCE.dense_attention(*arguments))


@pytest.mark.parametrize("segments", [[], [0, 0]], ids=str)
def test_no_tokens(cmodel, dtype, segments):
    q = torch.empty(0, 2, 8, dtype=dtype)
    assert cmodel.ops.dense_attention(q, q, q, segments, 1.0).shape == (0, 2, 8)


def test_large_scores(cmodel):
    q, k, v = torch.randn(3, 100, 2, 64) * 40
    arguments = q, k, v, [30, 70], 1.0
    assert_close(cmodel.ops.dense_attention(*arguments), REFERENCE.dense_attention(*arguments))


def test_a_segment_is_not_disturbed_by_its_neighbours(cmodel, dtype):
    """Not even by NaN: what stands beyond a segment in its last tile is not read."""
    torch.manual_seed(0)
    segments = [5, 64, 1, 70, 7]
    q, k, v = (x.contiguous() for x in random_qkv(sum(segments), 2, 24, dtype))
    starts = [sum(segments[:i]) for i in range(len(segments))]
    for start, length in zip(starts, segments, strict=True):
        mine = slice(start, start + length)
        others = torch.full_like(q, float("nan")), torch.full_like(k, float("nan")), torch.full_like(v, float("nan"))
        for other, own in zip(others, (q, k, v), strict=True):
            other[mine] = own[mine]
        out = cmodel.ops.dense_attention(*others, segments, 0.2)
        assert out[mine].isfinite().all()
        assert torch.equal(out[mine], cmodel.ops.dense_attention(q, k, v, segments, 0.2)[mine])


# --- the bits of a row depend on its segment alone ---

LENGTHS = (1, 7, 64, 65, 130, 577, 1100)


@pytest.fixture(params=[(64, 0), (80, 40), (9, 2)], ids=["64", "80 rotated", "9 rotated in part"])
def rows(request, dtype):
    """q, k, v and the rotation of 1,944 tokens, segments of LENGTHS."""
    dim, half = request.param
    torch.manual_seed(0)
    qkv = random_qkv(sum(LENGTHS), 3, dim, dtype)
    return qkv, random_rotation(sum(LENGTHS), half) if half else None


def attend(device, rows, order):
    """The results of segments, by number, that stand in this order in one call."""
    (q, k, v), rotation = rows
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    at = torch.cat([torch.arange(starts[i], starts[i] + LENGTHS[i]) for i in order])
    turns = None if rotation is None else Rotation(rotation.cos[at], rotation.sin[at])
    lengths = [LENGTHS[i] for i in order]
    out = device.ops.dense_attention(q[at], k[at], v[at], lengths, 0.3, turns)
    return dict(zip(order, out.split(lengths), strict=True))


ORDERS = ([6, 5, 4, 3, 2, 1, 0], [2, 6], [4, 1, 5], *([i] for i in range(7)))


def test_the_bits_of_a_segment(cmodel, rows, monkeypatch):
    """Alone, in other company and in another order; on any number of threads."""
    expected = attend(cmodel, rows, range(7))
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        device = CmodelDevice()
        for order in ORDERS:
            for segment, result in attend(device, rows, order).items():
                assert torch.equal(result, expected[segment]), f"segment {segment} of {order} on {threads} threads"


def test_the_bits_of_many_segments(cmodel, dtype):
    """A window among a thousand."""
    torch.manual_seed(0)
    q, k, v = random_qkv(1000 * 6, 2, 16, dtype)
    whole = cmodel.ops.dense_attention(q, k, v, [6] * 1000, 0.25)
    for window in (0, 1, 499, 999):
        at = slice(6 * window, 6 * window + 6)
        assert torch.equal(cmodel.ops.dense_attention(q[at], k[at], v[at], [6], 0.25), whole[at])
