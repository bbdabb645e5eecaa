"""Products on the chip against the reference."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from device.reference import activate
from device.tpuv7.commands import DTYPES, Activation, Linear
from tests.device.closeness import assert_close
from tests.tpuv7.chip import Account, Chip

HALVES = [torch.bfloat16, torch.float16]
NAMES = {Activation.SILU: "silu", Activation.GELU: "gelu", Activation.GELU_TANH: "gelu_tanh"}


class Case:
    """Random operands of one product. x is a view of a wider matrix."""

    def __init__(
        self,
        rows: int,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        bias: bool = False,
        activation: Activation = Activation.NONE,
        margin: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(rows * 31 + inputs * 7 + outputs)
        self.wide = torch.randn(rows, inputs + margin, generator=generator).to(dtype)
        self.x = self.wide[:, margin // 2 : margin // 2 + inputs]
        self.weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5 * 2).to(dtype)
        self.bias = torch.randn(outputs, generator=generator).to(dtype) if bias else None
        self.activation = activation
        self.columns = outputs // 2 if activation else outputs

    def expected(self) -> Tensor:
        out = F.linear(self.x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        if self.activation:
            gate, up = out.chunk(2, dim=-1)
            out = activate(gate, NAMES[self.activation]) * up
        return out.to(self.x.dtype)

    def run(self, chip: Chip, cores: int = 8, rows: int = 0) -> tuple[Tensor, Account]:
        """The product, NaN where nothing was written."""
        count, dtype = len(self.x), self.x.dtype
        out = chip.put(torch.full((count, self.columns), torch.nan, dtype=dtype))
        command = Linear(
            rows=count,
            dtype=DTYPES[dtype],
            out=out,
            x=chip.put(self.wide) + self.x.storage_offset() * 2,
            weight=chip.put(self.weight),
            bias=0 if self.bias is None else chip.put(self.bias),
            inputs=self.x.shape[1],
            outputs=len(self.weight),
            x_stride=self.wide.shape[1],
            activation=self.activation,
        )
        account = chip.run([command], cores, rows)
        return chip.get(out, (count, self.columns), dtype), account


def check(chip: Chip, case: Case, label: object = "") -> None:
    """Near the reference, and the same bits on one core."""
    found, _ = case.run(chip)
    assert_close(found, case.expected(), label)
    assert torch.equal(case.run(chip, cores=1)[0].view(torch.int16), found.view(torch.int16)), label


def random_case(seed: int) -> Case:
    pick = random.Random(seed)
    rows = pick.choice([1, 1, 2, 3, 16, 17, 63, 64, 65, pick.randint(1, 150)])
    inputs = pick.choice([1, 2, 31, 64, 65, 896, pick.randint(1, 700), pick.randint(1, 2500)])
    outputs = pick.choice([2, 16, 34, 128, 130, 2 * pick.randint(1, 300)])
    activation = pick.choice([Activation.NONE, Activation.NONE, *NAMES])
    margin = pick.choice([0, 0, 2, 64])
    return Case(rows, inputs, outputs, pick.choice(HALVES), pick.random() < 0.5, activation, margin)


QUICK = [
    Case(1, 1, 1, torch.bfloat16),
    Case(3, 70, 193, torch.float16, bias=True, margin=6),
    Case(66, 130, 70, torch.bfloat16, bias=True, activation=Activation.SILU),
    Case(2, 2100, 40, torch.float16, activation=Activation.GELU),
    Case(5, 96, 1100, torch.bfloat16, activation=Activation.GELU_TANH),
]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{tuple(case.x.shape)}-{case.columns}")
def test_products(chip: Chip, case: Case) -> None:
    check(chip, case)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 48))])
def test_random_products(chip: Chip, seed: int) -> None:
    check(chip, random_case(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(1100, 33, 40, torch.bfloat16, bias=True, activation=Activation.SILU),  # beyond a block of rows
        Case(70, 29696, 20, torch.float16),  # local memory has room for fewer rows
        Case(2, 40, 9000, torch.bfloat16, bias=True),  # many tiles
    ],
    ids=["rows", "inputs", "outputs"],
)
def test_large_products(chip: Chip, case: Case) -> None:
    check(chip, case)


def test_a_row_depends_on_that_row_alone(chip: Chip) -> None:
    case = Case(67, 2200, 48, torch.bfloat16)
    whole, _ = case.run(chip)
    case.wide = case.x = case.x[60:61].clone()
    assert torch.equal(case.run(chip)[0], whole[60:61])


def test_a_launch_may_ask_for_fewer_rows(chip: Chip) -> None:
    case = Case(9, 64, 80, torch.float16, bias=True)
    found, _ = case.run(chip, rows=4)
    assert_close(found[:4], case.expected()[:4])
    assert found[4:].isnan().all()


@pytest.mark.parametrize("rows", [1, 16])
def test_a_decode_step_reads_weights_once(chip: Chip, rows: int) -> None:
    case = Case(rows, 256, 4096, torch.bfloat16, bias=True, activation=Activation.SILU)
    _, account = case.run(chip)
    assert case.bias is not None
    needed = case.x.nbytes + case.weight.nbytes + case.bias.nbytes + rows * case.columns * 2
    assert account.bytes <= 1.15 * needed
    assert account.overlapped >= 0.7 * account.bytes
    assert account.peak <= 256 << 10
    assert account.operations == 2 * rows * case.weight.numel()
