"""The device beside its kernels: tensors, steps, caches, recordings, profiles. It runs on the emulator."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from device.interface import CacheSpec, DenseWeight, OutOfDeviceMemory, StepInputs, UnsupportedOperator
from device.tpuv7.device import Tpuv7Device
from device.tpuv7.tensors import ChipTensor
from sophserve.model.decoder import CausalLM
from sophserve.model.kv_memory import cached_layers
from sophserve.worker.batch import FlatBatch
from sophserve.worker.captured_decode import CapturedDecode
from tests.oracle.conftest import open_paged_model


def test_tensors_go_there_and_back(tpuv7: Tpuv7Device) -> None:
    values = torch.randn(5, 12, dtype=torch.bfloat16)
    there = tpuv7.put(values)
    assert isinstance(there, ChipTensor) and tpuv7.put(there) is there
    assert torch.equal(there.to_host(), values)


def test_views_stay_on_the_chip(tpuv7: Tpuv7Device) -> None:
    values = torch.randn(5, 12, dtype=torch.bfloat16)
    there = tpuv7.put(values)
    launches = tpuv7.chip.launches
    for view in (
        lambda x: x[1:4],
        lambda x: x[:, 3:7],
        lambda x: x.split([4, 8], dim=-1)[1].unflatten(-1, (2, 4)),
        lambda x: x.view(10, 6).transpose(0, 1),
        lambda x: x[2].flatten(),
    ):
        seen = view(there)
        assert isinstance(seen, ChipTensor) and torch.equal(seen.to_host(), view(values))
    assert tpuv7.chip.launches == launches


@torch.inference_mode()
def test_rows_are_gathered_on_the_chip(tpuv7: Tpuv7Device) -> None:
    values = torch.randn(50, 12, dtype=torch.bfloat16)
    rows = torch.tensor([49, 0, 7, 7])
    found = tpuv7.put(values)[rows]
    assert isinstance(found, ChipTensor) and torch.equal(found.to_host(), values[rows])


@torch.inference_mode()
def test_what_the_chip_has_no_command_for_is_done_on_the_host(tpuv7: Tpuv7Device) -> None:
    values = torch.randn(3, 4, dtype=torch.bfloat16)
    there = tpuv7.put(values)
    assert torch.equal(torch.cat([there, values]), torch.cat([values, values]))
    assert torch.equal(there.float() * 2, values.float() * 2)
    total = torch.zeros(4)
    total += there.float().sum(0)
    assert torch.equal(total, values.float().sum(0))
    with pytest.raises(NotImplementedError):
        there.add_(1)


def test_an_embedding_of_a_part_of_the_vocabulary(tpuv7: Tpuv7Device) -> None:
    table = torch.randn(10, 6, dtype=torch.bfloat16)
    found = tpuv7.ops.embedding(torch.tensor([3, 14, 15, 24, 25], dtype=torch.int32), table, first=15)
    assert isinstance(found, ChipTensor)
    zeros = torch.zeros(6, dtype=torch.bfloat16)
    assert torch.equal(found.to_host(), torch.stack([zeros, zeros, table[0], table[9], zeros]))


def test_blocks_of_a_cache_go_to_the_host_and_back(tpuv7: Tpuv7Device) -> None:
    kv = tpuv7.make_kv_cache(6, 4, CacheSpec(2, (8, 8), torch.bfloat16))
    assert kv.keys.shape == (6, 4, 2, 8)
    content = torch.randint(0, 256, (2, 2 * 4 * 2 * 8 * 2), dtype=torch.uint8)
    tpuv7.write_blocks(kv, [4, 1], content)
    assert torch.equal(tpuv7.read_blocks(kv, [1, 4]), content.flip(0))


def test_memory_is_used_again_and_counted(tpuv7: Tpuv7Device) -> None:
    free, total = tpuv7.memory()
    held = tpuv7.put(torch.zeros(1 << 20))
    assert tpuv7.memory() == (free - held.nbytes, total)
    address = held.address
    del held
    assert tpuv7.put(torch.zeros(1 << 20)).address == address


def test_unused_memory_goes_back_before_any_is_missing(tpuv7: Tpuv7Device) -> None:
    free, _ = tpuv7.memory()
    for share in (0.6, 0.7):
        block = tpuv7.chip.new(int(share * free))
        del block
    with pytest.raises(OutOfDeviceMemory):
        tpuv7.chip.new(2 * free)
    tpuv7.chip.trim()


def test_a_recording_gives_its_memory_back(tpuv7: Tpuv7Device) -> None:
    x = tpuv7.put(torch.randn(4, 64, dtype=torch.bfloat16))
    weight = tpuv7.pack(DenseWeight(torch.randn(64, 64, dtype=torch.bfloat16)))
    tpuv7.chip.trim()
    before = tpuv7.memory()
    replay = tpuv7.capture(lambda: tpuv7.ops.linear(tpuv7.ops.linear(x, weight), weight), 4)
    assert replay is not None and tpuv7.memory()[0] < before[0]
    del replay
    gc.collect()
    assert tpuv7.memory() == before


def test_heads_too_wide_are_refused_in_words(tpuv7: Tpuv7Device) -> None:
    kv = tpuv7.make_kv_cache(1, 4, CacheSpec(1, (520, 520), torch.bfloat16))
    step = tpuv7.prepare(_decode_batch(1).inputs, [])
    x = torch.zeros(1, 1, 520, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedOperator, match="up to 512 channels, 256 to a key, not with 520 and 1"):
        tpuv7.ops.paged_attention(x, x, x, kv, step, None, 1.0)


def test_float32_is_refused_in_words(tpuv7: Tpuv7Device) -> None:
    weight = tpuv7.pack(DenseWeight(torch.zeros(4, 4, dtype=torch.bfloat16)))
    with pytest.raises(UnsupportedOperator, match="bfloat16 and float16, not in float32"):
        tpuv7.ops.linear(torch.zeros(1, 4), weight)


def test_a_recorded_step_gives_what_the_plain_one_gives(
    tpuv7: Tpuv7Device, make_checkpoint: Callable[..., Path]
) -> None:
    model = open_paged_model(make_checkpoint("qwen2"), torch.bfloat16, device=tpuv7).model
    for layer in cached_layers(model):
        for cache in (layer.kv.keys, layer.kv.values):  # the batch reads positions that nobody has written
            places = cache.transpose(1, 2)
            places.copy_(torch.randn(places.shape))
    captured = CapturedDecode(tpuv7, model, 4, 3)
    with torch.inference_mode():
        for rows in (1, 3):
            _check_recording(tpuv7, model, captured, rows)


@torch.inference_mode()
def test_results_of_a_recording_leave_its_own_programs_alone(tpuv7: Tpuv7Device) -> None:
    """A step with host functions between has several programs, each stored when results before it are free again."""
    weight = tpuv7.pack(DenseWeight(torch.randn(64, 64, dtype=torch.bfloat16) / 8))
    x = tpuv7.put(torch.randn(1, 64, dtype=torch.bfloat16))

    def step() -> torch.Tensor:
        y = x
        for _ in range(4):
            y = tpuv7.ops.linear(tpuv7.ops.linear(y, weight), weight)
            if tpuv7.chip.recording:
                tpuv7.chip.recording.add_host_step(lambda rows: None)
        return y

    plain = step()
    replay = tpuv7.capture(step, 1)
    assert isinstance(plain, ChipTensor) and replay is not None
    for _ in range(2):
        again = replay(1)
        assert isinstance(again, ChipTensor) and torch.equal(again.to_host(), plain.to_host())


def _check_recording(tpuv7: Tpuv7Device, model: CausalLM, captured: CapturedDecode, rows: int) -> None:
    batch = _decode_batch(rows)
    plain = model.logits(model(tpuv7.prepare(batch.inputs, model.ropes)))
    before = tpuv7.chip.launches
    again = captured.run(batch)
    assert isinstance(plain, ChipTensor) and isinstance(again, ChipTensor)
    assert torch.equal(plain.to_host(), again.to_host())
    assert tpuv7.chip.launches - before == 2  # the plain step's rest, and the recording


def _decode_batch(rows: int) -> FlatBatch:
    cached = torch.arange(rows, dtype=torch.int32) * 5
    tables = torch.arange(3 * rows, dtype=torch.int32).view(rows, 3) + 1
    slots = tables[torch.arange(rows), cached // 8] * 8 + cached % 8
    ids = torch.arange(rows, dtype=torch.int32) + 7
    inputs = StepInputs(torch.ones_like(ids), cached, tables, slots, 16, ids=ids, positions=cached)
    return FlatBatch(inputs, [], [None] * rows, torch.arange(rows), [], [], [], [], cached)  # type: ignore[list-item]


@torch.inference_mode()
def test_a_profile_has_every_command_and_what_it_moved(
    tpuv7: Tpuv7Device, make_checkpoint: Callable[..., Path]
) -> None:
    model = open_paged_model(make_checkpoint("qwen2"), torch.bfloat16, device=tpuv7).model
    tpuv7.start_profile(1000, 2)
    model.logits(model(tpuv7.prepare(_decode_batch(2).inputs, model.ropes)))
    records = tpuv7.profile_records()
    tpuv7.stop_profile()
    names = [record.operator.split()[0] for record in records]
    assert names.count("paged_attention") == len(model.layers)
    assert names.count("linear") == 4 * len(model.layers) + 1
    head = records[-1]
    weight = model.vocab_size * model.config.hidden_size * 2
    assert head.operator.startswith("linear") and weight <= head.bytes < 1.2 * weight
    assert head.operations == 2 * 2 * model.vocab_size * model.config.hidden_size
    assert tpuv7.profile_records() == []
