"""What a decode step costs an SG2260, counted on its emulator: `tpuv7.py [DIRECTORY ...]`, demo by default.

Time on the emulator says nothing about a chip, so launches and bytes are counted. Least bytes: every weight that a
token goes through once, the keys and values of all positions seen, and those of the new ones. `sophserve tpuv7 setup`
comes first.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("CMODEL_FAST_EXEC", "1")

import torch
from torch import Tensor

from benchmarks.machine import commit
from device.collectives.interface import SingleRank
from device.interface import StepInputs
from device.tpuv7.device import Tpuv7Device
from sophserve.checkpoint import SHIPPED
from sophserve.model.context import ModelContext
from sophserve.model.decoder import CausalLM
from sophserve.model.kv_memory import cached_layers, token_bytes
from sophserve.model.layers import PackedModule
from sophserve.model.loading import load_model

BLOCK_SIZE = 16
CASES = [(1, 128), (1, 1024), (8, 128)]
COLUMNS = ["model", "layers", "batch", "cached", "launches", "not recorded", "MB moved", "at least", "ratio"]
COLUMNS += ["overlapped", "KiB a lane"]


class Count(NamedTuple):
    """Of a decode step. launches, launches_plain: recorded, and not. moved: bytes by DMA, overlapped: while the cores
    computed. local: the most local memory in use, bytes a lane."""

    launches: int
    launches_plain: int
    least: int
    moved: int
    overlapped: int
    local: int


def load(device: Tpuv7Device, directory: Path, blocks: int) -> CausalLM:
    model = load_model(directory, ModelContext(device, SingleRank(), torch.bfloat16, 2048))
    for layer in cached_layers(model):
        layer.kv = device.make_kv_cache(blocks, BLOCK_SIZE, layer.cache)
        for cache in (layer.kv.keys, layer.kv.values):
            cache.transpose(1, 2).copy_(torch.zeros(cache.transpose(1, 2).shape))
    return model


def decode_inputs(batch: int, cached: int) -> StepInputs:
    blocks = cached // BLOCK_SIZE + 1
    ones = torch.ones(batch, dtype=torch.int32)
    tables = torch.arange(batch * blocks, dtype=torch.int32).view(batch, blocks)
    slots = tables[:, -1] * BLOCK_SIZE + cached % BLOCK_SIZE
    return StepInputs(ones, ones * cached, tables, slots, cached + 1, ids=ones * 7, positions=ones * cached)


def count(device: Tpuv7Device, model: CausalLM, batch: int, cached: int) -> Count:
    inputs = decode_inputs(batch, cached)

    def step() -> Tensor:
        return model.logits(model(device.prepare(inputs, model.ropes)))

    before = device.chip.launches
    step()
    device.synchronize()
    plain = device.chip.launches - before
    replay = device.capture(step, batch)
    assert replay is not None
    before = device.chip.launches
    replay(batch)
    launches = device.chip.launches - before
    device.start_profile(0, 2)
    replay(batch)
    records = device.profile_records()
    device.stop_profile()
    details = [dict(part.split("=") for part in record.detail.split()) for record in records]
    weights = sum(module.weight.nbytes for module in model.modules() if isinstance(module, PackedModule))
    return Count(
        launches,
        plain,
        weights + batch * (cached + 2) * token_bytes(model),
        sum(record.bytes for record in records),
        sum(int(detail["overlapped"]) for detail in details),
        max(int(detail["local_bytes"]) for detail in details),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="directories of checkpoints")
    directories = [Path(name) for name in parser.parse_args().model] or list(SHIPPED.values())
    device = Tpuv7Device()
    print(f"{device.describe()}, commit {commit()}\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for directory in directories:
        model = load(device, directory, 1 + max(batch * (cached // BLOCK_SIZE + 1) for batch, cached in CASES))
        for batch, cached in CASES:
            with torch.inference_mode():
                found = count(device, model, batch, cached)
            cells = [directory.name, len(model.layers), batch, cached, found.launches, found.launches_plain]
            cells += [f"{size / 1e6:.2f}" for size in (found.moved, found.least)]
            cells += [f"{found.moved / found.least:.2f}", f"{found.overlapped / found.moved:.0%}", found.local >> 10]
            print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
