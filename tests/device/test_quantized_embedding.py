"""Rows of quantized tables, to the last bit as the reference reads them."""

from __future__ import annotations

import pytest
import torch

from device.interface import DenseWeight, Float8Weight, IntWeight
from device.reference import ReferenceOps, ReferenceWeight, dequantize

REFERENCE = ReferenceOps()


def ints(shape, bits, group, symmetric=False, ordered=False, scales=torch.float16):
    outputs, inputs = shape
    groups = -(-inputs // group)
    codes = torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8)
    zeros = torch.randint(1 << bits, (outputs, groups), dtype=torch.uint8)
    if symmetric:
        zeros.fill_(1 << (bits - 1))
    order = None
    if ordered:  # with gaps at the end
        order = torch.cat([torch.randperm(inputs - 3), torch.full((3,), -1)]).int()
    return IntWeight(codes, torch.randn(outputs, groups).to(scales), zeros, group, bits, order)


def float8(shape, group):
    values = torch.randn(shape).to(torch.float8_e4m3fn)
    return Float8Weight(values, torch.randn(shape[0], -(-shape[1] // group)), group)


TABLES = {
    "8 bits": lambda: ints((100, 896), 8, 128, symmetric=True),
    "8 bits, bfloat16 scales": lambda: ints((70, 160), 8, 32, symmetric=True, scales=torch.bfloat16),
    "8 bits, zero points": lambda: ints((33, 96), 8, 96, scales=torch.float32),
    "8 bits, one group of odd length": lambda: ints((65, 75), 8, 75),
    "8 bits in an order": lambda: ints((40, 128), 8, 64, ordered=True),
    "4 bits": lambda: ints((31, 256), 4, 64),
    "4 bits in an order": lambda: ints((7, 64), 4, 32, ordered=True),
    "float8": lambda: float8((50, 200), 64),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("first", [None, 5])
def test_rows(cmodel, dtype, table, first):
    torch.manual_seed(0)
    weight = TABLES[table]()
    rows = len(weight.values)
    ids = torch.randint(rows, (150,)) if first is None else torch.randint(-3, rows + 20, (150,))
    found = cmodel.ops.embedding(ids, cmodel.pack(weight, "tied_head"), first, dtype)
    assert found.dtype == dtype and torch.equal(found, REFERENCE.embedding(ids, ReferenceWeight(weight), first, dtype))
    # As from the plain table of the same values.
    assert torch.equal(found, REFERENCE.embedding(ids, dequantize(weight).to(dtype), first))


def test_what_cannot_be_read(cmodel):
    packed = cmodel.pack(TABLES["8 bits"]())
    for ids in ([100], [0, -1]):
        with pytest.raises(ValueError, match=r"ids must be in \[0, 100\)"):
            cmodel.ops.embedding(torch.tensor(ids), packed, None, torch.bfloat16)
    assert cmodel.ops.embedding(torch.empty(0, dtype=torch.int64), packed, 7, torch.float32).shape == (0, 896)
    for ops, table in ((cmodel.ops, packed), (REFERENCE, ReferenceWeight(TABLES["8 bits"]()))):
        with pytest.raises(ValueError, match="the rows need an activation dtype, got None"):
            ops.embedding(torch.tensor([1]), table)


def test_a_plain_table_has_its_own_dtype(cmodel):
    table = torch.randn(9, 64, dtype=torch.bfloat16)
    packed = cmodel.pack(DenseWeight(table), "tied_head")
    assert torch.equal(cmodel.ops.embedding(torch.tensor([3, 8]), packed, None, torch.bfloat16), table[[3, 8]])
