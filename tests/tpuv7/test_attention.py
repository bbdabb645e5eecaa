"""Rotation, cache and attention on the emulated chip, against the reference."""

from __future__ import annotations

import random
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from device.interface import AttentionMeta, KVCache, Rope
from device.reference import ReferenceOps
from device.tpuv7.commands import DTYPES, MOST_GROUP_HEADS, MOST_HEAD_DIM, Attention, BatchLayout, CacheWrite
from tests.device.closeness import assert_close
from tests.tpuv7.chip import Account, Chip

REFERENCE = ReferenceOps()
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Shape:
    """new, cached: tokens of each sequence. rotary: 0 without rope. scattered: blocks are in no order."""

    new: tuple[int, ...]
    cached: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dims: tuple[int, int] = (64, 64)
    block_size: int = 16
    rotary: int = 64
    interleaved: bool = False
    window: int | None = None
    dtype: torch.dtype = BFLOAT16
    scattered: bool = True


class Case:
    """Values for a shape: projections of the new tokens in one matrix, and a cache with what came before."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        tokens, dtype = sum(shape.new), shape.dtype
        key_dim, value_dim = shape.dims
        ends = torch.tensor(shape.new) + torch.tensor(shape.cached)
        used = (ends + shape.block_size - 1) // shape.block_size
        blocks = int(used.sum()) + 2
        self.widths = shape.heads * key_dim, shape.kv_heads * key_dim, shape.kv_heads * value_dim
        self.qkv = torch.randn(tokens, sum(self.widths)).to(dtype)
        self.keys, self.values = (
            torch.randn(blocks, shape.block_size, shape.kv_heads, dim).to(dtype) for dim in shape.dims
        )
        self.keys[-1] = self.values[-1] = float("nan")  # a block that nobody has
        order = (torch.randperm if shape.scattered else torch.arange)(blocks - 1).int()
        self.tables = torch.full((len(shape.new), int(used.max()) + 1), -1, dtype=torch.int32)
        for table, count in zip(self.tables, used.tolist(), strict=True):
            table[:count], order = order[:count], order[count:]
        angles = torch.rand(int(ends.max()), shape.rotary // 2) * 6
        self.rope = Rope(angles.cos(), angles.sin(), shape.interleaved) if shape.rotary else None
        slots = [self._slots(*each) for each in zip(self.tables, shape.new, shape.cached, strict=True)]
        new, cached = (torch.tensor(lengths, dtype=torch.int32) for lengths in (shape.new, shape.cached))
        self.step = AttentionMeta(new, cached, self.tables.clamp(min=0), torch.cat(slots), int(ends.max()))

    def _slots(self, table: Tensor, new: int, cached: int) -> Tensor:
        size, at = self.shape.block_size, torch.arange(cached, cached + new)
        return (table.long()[at // size] * size + at % size).int()

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result and the caches after it."""
        shape, kv = self.shape, KVCache(self.keys.clone(), self.values.clone())
        q, k, v = self.qkv.split(self.widths, dim=1)
        q = q.unflatten(1, (shape.heads, -1))
        k, v = (x.unflatten(1, (shape.kv_heads, -1)) for x in (k, v))
        scale = shape.dims[0] ** -0.5
        out = REFERENCE.paged_attention(q, k, v, kv, self.step, self.rope, scale, shape.window)
        return out, kv.keys, kv.values

    def run(self, chip: Chip, cores: int = 8, rows: int = 0) -> tuple[Tensor, Tensor, Tensor, Account]:
        """The same of the chip, and its account."""
        shape, tokens = self.shape, len(self.qkv)
        out = torch.full((tokens, shape.heads, shape.dims[1]), 7.0, dtype=shape.dtype)
        keys, values = (cache.transpose(1, 2).contiguous() for cache in (self.keys, self.values))
        write, attend = self.commands(chip, chip.put(keys), chip.put(values), chip.put(out))
        account = chip.run([write, attend], cores, rows)
        found = [
            chip.get(address, tuple(like.shape), shape.dtype)
            for address, like in ((attend.out, out), (attend.keys, keys), (attend.values, values))
        ]
        return found[0], found[1].transpose(1, 2), found[2].transpose(1, 2), account

    def commands(self, chip: Chip, keys: int, values: int, out: int) -> tuple[CacheWrite, Attention]:
        shape, step, tokens = self.shape, self.step, len(self.qkv)
        (key_dim, value_dim), stride = shape.dims, self.qkv.shape[1]
        layout = BatchLayout(
            *(chip.put(x) for x in (step.input_lengths, step.cached_lengths, self.tables, step.slot_mapping)),
            *(len(shape.new), self.tables.shape[1], shape.block_size),
        )
        heads = {"heads": shape.heads, "kv_heads": shape.kv_heads, "key_dim": key_dim, "value_dim": value_dim}
        common = {
            "rows": tokens,
            "dtype": DTYPES[shape.dtype],
            "keys": keys,
            "values": values,
            "batch": layout,
            **heads,
        }
        q = chip.put(self.qkv)
        rotated = chip.put(torch.empty(tokens, self.widths[0], dtype=shape.dtype))
        cos, sin = map(chip.put, step.rotation(self.rope, REFERENCE)) if self.rope else (0, 0)
        write = CacheWrite(
            **common,
            rotated=rotated,
            q=q,
            k=q + self.widths[0] * 2,
            v=q + sum(self.widths[:2]) * 2,
            cos=cos,
            sin=sin,
            rotary_dim=shape.rotary,
            interleaved=shape.interleaved,
            q_stride=stride,
            k_stride=stride,
            v_stride=stride,
        )
        return write, Attention(**common, out=out, q=rotated, window=shape.window or 0, scale=key_dim**-0.5)


def random_shape(seed: int) -> Shape:
    draw = random.Random(seed)
    kv_heads, group = draw.choice([(1, 1), (2, 1), (1, 2), (2, 2), (1, 7), (2, 7), (1, 8), (3, 8)])
    key_dim = draw.choice([1, 16, 20, 64, 80, 96, 128, 192, 256])
    value_dim = draw.choice([key_dim, key_dim, key_dim, 1, 20, 64, 128, 256])
    decodes, prefills = draw.choice([(1, 0), (4, 0), (9, 0), (0, 1), (0, 2), (3, 1), (2, 3)])
    cached = [draw.randint(0, 299) for _ in range(decodes)]
    cached += [draw.choice([0, draw.randint(1, 200)]) for _ in range(prefills)]
    new = [1] * decodes + [draw.randint(2, draw.choice([5, 40, 100])) for _ in range(prefills)]
    return Shape(
        tuple(new),
        tuple(cached),
        kv_heads * group,
        kv_heads,
        (key_dim, value_dim),
        draw.choice([1, 4, 16, 16, 24, 128, 256]),
        rotary=draw.choice([key_dim, key_dim, key_dim // 2, 0]) // 2 * 2,
        interleaved=draw.random() < 0.3,
        window=draw.choice([None, None, 1, draw.randint(2, 300)]),
        dtype=(BFLOAT16, FLOAT16)[seed % 2],
    )


def bits(values: Tensor) -> Tensor:
    """To be compared, also where they are no numbers."""
    return values.contiguous().view(torch.int16)


def check(chip: Chip, shape: Shape) -> None:
    """As the reference, with one core as with all; what is not new in the cache stays as it was."""
    torch.manual_seed(0)
    case = Case(shape)
    expected, *cache = case.expected()
    found = [case.run(chip, cores)[:3] for cores in (1, 8)]
    chip.clear()
    assert_close(found[0][0], expected, shape)
    for of_one, of_all in zip(*found, strict=True):
        assert torch.equal(bits(of_one), bits(of_all)), shape
    for after, reference in zip(found[0][1:], cache, strict=True):
        assert torch.equal(bits(after), bits(reference)), shape


@pytest.mark.parametrize(
    "shape",
    [
        Shape((1,), (0,)),
        Shape((1, 1, 1), (9, 255, 256), heads=7, kv_heads=1, dims=(20, 20), block_size=1, rotary=20, dtype=FLOAT16),
        Shape((1, 1, 33, 5), (299, 3, 100, 0), heads=6, dims=(80, 96), block_size=24, rotary=32, interleaved=True),
        Shape(
            (40, 2),
            (230, 0),
            heads=16,
            dims=(96, 80),
            block_size=4,
            window=17,
            rotary=0,
            dtype=FLOAT16,
            scattered=False,
        ),
        Shape((1, 1, 70), (40, 290, 207), kv_heads=1, dims=(128, 256), block_size=128, window=100, rotary=128),
    ],
    ids=str,
)
def test_as_the_reference(chip: Chip, shape: Shape) -> None:
    check(chip, shape)


@pytest.mark.slow
def test_random_shapes(chip: Chip) -> None:
    for seed in range(60):
        check(chip, random_shape(seed))


@pytest.mark.slow
def test_the_largest(chip: Chip) -> None:
    group, dim = MOST_GROUP_HEADS, MOST_HEAD_DIM
    check(chip, Shape((2,), (300,), heads=group, kv_heads=1, dims=(dim, dim), rotary=dim))
    check(chip, Shape((1, 20), (2000, 1900), dims=(128, 128), rotary=128))
    check(chip, Shape((1,), (32700,), heads=2, kv_heads=1))


@pytest.mark.parametrize("window", [None, 50])
def test_chunks_and_decodes_have_the_bits_of_one_prefill(chip: Chip, window: int | None) -> None:
    """Whatever else is in the batch. (Not with CMODEL_FAST_EXEC, whose products depend on how many rows there are.)"""
    torch.manual_seed(1)
    whole = Case(Shape((300,), (0,), heads=2, kv_heads=1, window=window))
    out, whole.keys, whole.values, _ = whole.run(chip)
    for first, end in pairwise([0, 130, 131, 256, 299, 300]):
        other = Case(replace(whole.shape, new=(1,), cached=(99,)))
        found, *_ = joined(other, part(whole, first, end)).run(chip)
        assert torch.equal(bits(found[1:]), bits(out[first:end])), (first, end)


def part(whole: Case, first: int, end: int) -> Case:
    """The tokens [first, end) of one sequence, with what came before in the cache."""
    chunk = copy(whole)
    chunk.shape = replace(whole.shape, new=(end - first,), cached=(first,))
    chunk.qkv = whole.qkv[first:end]
    new, cached = (torch.tensor([length], dtype=torch.int32) for length in (end - first, first))
    slots = whole.step.slot_mapping[first:end]
    chunk.step = AttentionMeta(new, cached, whole.step.block_tables, slots, end)
    return chunk


def joined(first: Case, second: Case) -> Case:
    """The sequences of both in one batch; the rope is the second's."""
    batch, moved = copy(second), len(first.keys)
    cases = first, second
    new, cached = (tuple(getattr(case.shape, name)[0] for case in cases) for name in ("new", "cached"))
    batch.shape = replace(second.shape, new=new, cached=cached)
    batch.qkv, batch.keys, batch.values = (
        torch.cat([getattr(case, name) for case in cases]) for name in ("qkv", "keys", "values")
    )
    tables = [first.tables[0], torch.where(second.tables[0] < 0, -1, second.tables[0] + moved)]
    batch.tables = pad_sequence(tables, batch_first=True, padding_value=-1)
    slots = torch.cat([first.step.slot_mapping, second.step.slot_mapping + moved * batch.shape.block_size])
    lengths = (torch.tensor(each, dtype=torch.int32) for each in (new, cached))
    batch.step = AttentionMeta(*lengths, batch.tables.clamp(min=0), slots, sum(new + cached))
    return batch


def test_a_sequence_that_is_no_number_stays_alone(chip: Chip) -> None:
    torch.manual_seed(2)
    case = Case(Shape((1, 1, 1, 3), (40, 60, 300, 20), window=30, rotary=0, heads=2, kv_heads=1))
    clean, *_ = case.run(chip, 1)
    for cache in (case.keys, case.values):
        cache[case.tables[0, :3].long()] = float("nan")
    spoilt, *_ = case.run(chip, 1)
    assert spoilt[0].isnan().all()
    assert torch.equal(bits(spoilt[1:]), bits(clean[1:]))


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_rows_beyond_the_launch_are_left_alone(chip: Chip, rows: int) -> None:
    """A recorded step is replayed for fewer rows; what the batch says of the others is of no meaning."""
    torch.manual_seed(3)
    case = Case(Shape((1, 1, 1, 4), (30, 299, 0, 17)))
    expected, *reference = case.expected()
    case.step.input_lengths[rows:], case.step.cached_lengths[rows:] = 1000, -5
    case.tables[rows:] = 1 << 28
    slots = case.step.slot_mapping[:rows].long()
    case.step.slot_mapping[rows:] = 1 << 30
    out, *cache, _ = case.run(chip, rows=rows)
    assert_close(out[:rows], expected[:rows])
    assert torch.all(out[rows:] == 7)
    for found, before, after in zip(cache, (case.keys, case.values), reference, strict=True):
        wanted = before.clone()
        wanted.flatten(0, 1)[slots] = after.flatten(0, 1)[slots]
        assert torch.equal(bits(found), bits(wanted))


@pytest.mark.parametrize(("position", "window"), [(300, None), (2000, None), (2000, 300)])
def test_a_decode_moves_little_more_than_what_it_sees(chip: Chip, position: int, window: int | None) -> None:
    shape = Shape((1,) * 4, (position,) * 4, heads=8, dims=(128, 128), rotary=0, window=window)
    *_, account = Case(shape).run(chip)
    visible = min(position + 1, window or position + 1) * 4 * shape.kv_heads * sum(shape.dims) * 2
    assert visible <= account.bytes <= 1.15 * visible
    assert account.overlapped > account.bytes / 2
    assert account.peak <= 256 * 1024
    assert account.operations >= visible // 2 * 4


def test_keys_and_values_are_read_once_for_all_heads_and_rows(chip: Chip) -> None:
    shape = Shape((32,), (1000,), heads=8, kv_heads=1, dims=(64, 64), rotary=0)
    *_, account = Case(shape).run(chip)
    cache, queries, new = (1000 + 32) * 128 * 2, 32 * 8 * 64 * 2, 32 * 128 * 2
    written = 2 * queries + 2 * new
    assert account.bytes == written + cache + 2 * queries
