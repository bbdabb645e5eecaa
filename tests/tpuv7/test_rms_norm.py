"""Norms on the chip against the reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from device.reference import ReferenceOps
from device.tpuv7.commands import DTYPES, RmsNorm
from tests.device.closeness import assert_close
from tests.tpuv7.chip import Account, Chip

HALVES = [torch.bfloat16, torch.float16]
EPS = 1e-5


class Case:
    """Random operands of one norm, x and residual [rows, heads, size] as views of wider matrices."""

    def __init__(
        self,
        rows: int,
        heads: int,
        size: int,
        dtype: torch.dtype,
        residual: bool = False,
        margin: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(rows * 31 + heads * 7 + size)
        shape = (rows, heads * size + margin)
        self.wide = torch.randn(shape, generator=generator).to(dtype)
        self.wide_residual = torch.randn(shape, generator=generator).to(dtype) * 3 if residual else None
        self.first = margin // 2
        self.weight = torch.randn(size, generator=generator).to(dtype)
        self.shape = (rows, heads, size)

    def _view(self, wide: Tensor) -> Tensor:
        _, heads, size = self.shape
        return wide[:, self.first : self.first + heads * size].unflatten(1, (heads, size))

    def expected(self) -> tuple[Tensor, Tensor]:
        residual = None if self.wide_residual is None else self._view(self.wide_residual)
        return ReferenceOps().rms_norm(self._view(self.wide), self.weight, EPS, residual)

    def run(self, chip: Chip, cores: int = 8, rows: int = 0) -> tuple[Tensor, Tensor, Account]:
        """The norm and the sum, NaN where nothing was written."""
        count, heads, size = self.shape
        dtype = self.weight.dtype
        nothing = torch.full(self.shape, torch.nan, dtype=dtype)
        out, total = chip.put(nothing), chip.put(nothing)
        residual = 0 if self.wide_residual is None else chip.put(self.wide_residual) + self.first * 2
        command = RmsNorm(
            rows=count,
            dtype=DTYPES[dtype],
            out=out,
            sum=total if residual else 0,
            x=chip.put(self.wide) + self.first * 2,
            residual=residual,
            weight=chip.put(self.weight),
            heads=heads,
            size=size,
            x_stride=self.wide.shape[1],
            residual_stride=self.wide.shape[1],
            eps=EPS,
        )
        account = chip.run([command], cores, rows)
        return chip.get(out, self.shape, dtype), chip.get(total, self.shape, dtype), account


def check(chip: Chip, case: Case, label: object = "") -> None:
    """Near the reference, the sum exact, and the same bits on one core."""
    found, total, _ = case.run(chip)
    expected, expected_total = case.expected()
    assert_close(found, expected, label)
    if case.wide_residual is not None:
        assert torch.equal(total, expected_total), label
    else:
        assert total.isnan().all(), label
    assert torch.equal(case.run(chip, cores=1)[0].view(torch.int16), found.view(torch.int16)), label


def random_case(seed: int) -> Case:
    pick = random.Random(seed)
    rows = pick.choice([1, 1, 2, 16, 63, 65, 129, pick.randint(1, 300), pick.randint(1, 1200)])
    heads = pick.choice([1, 1, 2, 7, 28, pick.randint(1, 40)])
    most = max(1, min(16384, 300_000 // (rows * heads)))
    size = min(most, pick.choice([1, 64, 128, 896, 2049, 4096, pick.randint(1, 300), pick.randint(1, 16384)]))
    return Case(rows, heads, size, pick.choice(HALVES), pick.random() < 0.6, pick.choice([0, 0, 2, 64]))


QUICK = [
    Case(1, 1, 1, torch.float16),
    Case(3, 1, 2100, torch.bfloat16, residual=True),
    Case(70, 5, 65, torch.float16, margin=10),
    Case(9, 28, 128, torch.bfloat16, margin=512),
]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: "x".join(map(str, case.shape)))
def test_norms(chip: Chip, case: Case) -> None:
    check(chip, case)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 48))])
def test_random_norms(chip: Chip, seed: int) -> None:
    check(chip, random_case(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(66, 1, 16384, torch.bfloat16, residual=True),  # as large as they come
        Case(3000, 1, 96, torch.float16, residual=True),  # many tiles
        Case(5, 200, 128, torch.bfloat16, margin=6),  # more heads than fit at once
    ],
    ids=["size", "rows", "heads"],
)
def test_large_norms(chip: Chip, case: Case) -> None:
    check(chip, case)


def test_a_row_depends_on_that_row_alone(chip: Chip) -> None:
    case = Case(130, 1, 2500, torch.bfloat16)
    whole, _, _ = case.run(chip)
    case.wide, case.shape = case.wide[77:78].clone(), (1, 1, 2500)
    assert torch.equal(case.run(chip)[0], whole[77:78])


def test_a_launch_may_ask_for_fewer_rows(chip: Chip) -> None:
    case = Case(9, 2, 64, torch.float16, residual=True)
    found, total, _ = case.run(chip, rows=4)
    assert_close(found[:4], case.expected()[0][:4])
    assert found[4:].isnan().all() and total[4:].isnan().all()


def test_memory_is_read_and_written_once(chip: Chip) -> None:
    case = Case(600, 1, 256, torch.bfloat16, residual=True)
    _, _, account = case.run(chip)
    assert account.bytes <= 1.05 * 4 * case.wide.nbytes
    assert account.peak <= 256 << 10
