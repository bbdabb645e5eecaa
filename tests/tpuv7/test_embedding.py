"""Rows of a table on the chip against the reference."""

from __future__ import annotations

import random

import pytest
import torch

from device.reference import ReferenceOps
from device.tpuv7.commands import DTYPES, Embedding
from tests.tpuv7.chip import Chip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 42), marks=pytest.mark.slow)])
def test_random_shapes(chip: Chip, seeds: range, dtype: torch.dtype) -> None:
    for seed in seeds:
        generator = random.Random(seed)
        torch.manual_seed(seed)
        vocab, hidden, rows = (generator.randint(1, most) for most in (200, 300, 20))
        table = torch.randn(vocab, hidden).to(dtype)
        # Of a part of a vocabulary there are ids before and after it.
        first = generator.choice([0, 0, generator.randint(1, 50)])
        ids = torch.randint(0, vocab + first * 2, (rows,), dtype=torch.int32)
        expected = ReferenceOps().embedding(ids, table, first)
        for cores in (1, 8):
            out = chip.put(torch.full((rows, hidden), torch.nan, dtype=dtype))
            command = Embedding(
                rows=rows,
                dtype=DTYPES[dtype],
                out=out,
                table=chip.put(table),
                ids=chip.put(ids),
                hidden=hidden,
                vocab=vocab,
                first=first,
            )
            chip.run([command], cores)
            assert torch.equal(chip.get(out, (rows, hidden), dtype), expected), (seed, cores)
        chip.clear()
