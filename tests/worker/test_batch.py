"""The flat batch that a step plan becomes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sophserve.link.images import ImageShape, PlacedImage
from sophserve.link.messages import AddedRequest, ScheduledRequest, StepPlan
from sophserve.sampling import SamplingParams
from sophserve.worker.arrays import as_tensor
from sophserve.worker.batch import BatchBuilder, FlatBatch


def added(identity: int, tokens: list[int], **options: Any) -> AddedRequest:
    return AddedRequest(identity, array("i", tokens).tobytes(), len(tokens), 0, 0, SamplingParams(**options), [], [])


def build(builder: BatchBuilder, plan: StepPlan, drafts: Mapping[int, list[int]] | None = None) -> FlatBatch:
    builder.take_in(plan)
    return builder.build(plan, drafts or {})


def test_rows_lie_where_the_blocks_say() -> None:
    builder = BatchBuilder(block_size=4, vocab_size=100)
    requests = [added(1, list(range(10, 20))), added(2, [7])]
    batch = build(builder, StepPlan(0, [], requests, [ScheduledRequest(2, 1, [5]), ScheduledRequest(1, 6, [9, 3, 8])]))
    inputs = batch.inputs
    assert inputs.ids.tolist() == [7, 10, 11, 12, 13, 14, 15] and inputs.positions.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert inputs.slot_mapping.tolist() == [20, 36, 37, 38, 39, 12, 13]
    assert inputs.block_tables.tolist() == [[5, 0], [9, 3]] and inputs.max_length == 6
    assert [state.id for state, _ in batch.sampled] == [2] and batch.sample_rows.tolist() == [0]
    batch.sampled[0].state.extend([70])
    # The prompt goes on within a block, and the other request has gone.
    batch = build(builder, StepPlan(1, [2], [], [ScheduledRequest(1, 3, [])]))
    inputs = batch.inputs
    assert inputs.ids.tolist() == [16, 17, 18] and inputs.slot_mapping.tolist() == [14, 15, 32]
    assert inputs.input_lengths.tolist() == [3] and inputs.cached_lengths.tolist() == [6]
    assert inputs.block_tables.tolist() == [[9, 3, 8]] and not batch.sampled
    assert batch.sample_rows.shape == (0,) and list(builder.states) == [1]
    assert {tensor.dtype for tensor in vars(inputs).values() if isinstance(tensor, torch.Tensor)} == {torch.int32}


def test_rows_of_drafts() -> None:
    """Behind the last token, across blocks, and behind the sequences of one row. They do not count as computed."""
    builder = BatchBuilder(block_size=4, vocab_size=100)
    requests = [added(number, list(range(10 * number, 10 * number + 7))) for number in (1, 2, 3)]
    build(builder, StepPlan(0, [], requests, [ScheduledRequest(number, 7, [number, number + 4]) for number in (1, 2)]))
    for number in (1, 2):
        builder.states[number].extend([90 + number])
    scheduled = [ScheduledRequest(1, 1, [4], 4), ScheduledRequest(2, 1, [], 4), ScheduledRequest(3, 7, [3, 7])]
    batch = build(builder, StepPlan(1, [], [], scheduled), {1: [5, 6, 7]})
    inputs = batch.inputs
    assert inputs.ids.tolist() == [92, *range(30, 37), 91, 5, 6, 7]
    assert inputs.input_lengths.tolist() == [1, 7, 4] and inputs.cached_lengths.tolist() == [7, 0, 7]
    assert inputs.slot_mapping.tolist()[-4:] == [23, 16, 17, 18] and inputs.max_length == 11
    assert inputs.block_tables.tolist() == [[2, 6, 0], [3, 7, 0], [1, 5, 4]]
    assert batch.places.tolist() == [7, *range(7), 7, 8, 9, 10] == inputs.positions.tolist()
    assert [(state.id, drafts) for state, drafts in batch.sampled] == [(2, ()), (3, ()), (1, [5, 6, 7])]
    assert batch.sample_rows.tolist() == [0, 7, 8, 9, 10, 11]
    assert [builder.states[number].computed for number in (1, 2, 3)] == [8, 8, 7]


def test_arrays_as_tensors() -> None:
    for code, dtype in (("i", torch.int32), ("q", torch.int64), ("f", torch.float32)):
        assert torch.equal(as_tensor(array(code, [1, 2])), torch.tensor([1, 2], dtype=dtype))
        assert as_tensor(array(code)).dtype == dtype


def seeing(identity: int, tokens: list[int], images: list[PlacedImage], computed: int = 0) -> AddedRequest:
    request = added(identity, tokens)
    request.images, request.computed = images, computed
    return request


def test_rows_of_images() -> None:
    """Wherever a chunk cuts them, and next to rows of others."""
    images = [PlacedImage(b"a", 2, ImageShape(3, (1,), ())), PlacedImage(b"b", 5, ImageShape(4, (1,), ()))]
    for size in range(1, 12):
        builder, found = BatchBuilder(block_size=16, vocab_size=100), []
        request = seeing(1, [7] * 11, images)
        for start in range(0, 11, size):
            count = min(size, 11 - start)
            plan = StepPlan(0, [], [added(start + 2, [5]), *([] if start else [request])], [])
            plan.scheduled = [ScheduledRequest(start + 2, 1, [3]), ScheduledRequest(1, count, [] if start else [0])]
            for rows in build(builder, plan).images:
                assert rows.first < rows.end
                found += [
                    (rows.digest, start + rows.first_row - 1 + n, rows.first + n) for n in range(rows.end - rows.first)
                ]
        assert found == [(b"a", 2 + n, n) for n in range(3)] + [(b"b", 5 + n, n) for n in range(4)]


def test_positions_on_each_axis() -> None:
    """An image of 2 x 3 after two tokens, and one of 1 x 2 right behind it; then the answer."""

    def axis_positions(grid: Sequence[int], tokens: int) -> tuple[torch.Tensor, int]:
        _, width = grid
        places = torch.arange(tokens)
        return torch.stack([places * 0, places // width, places % width]), max(grid)

    images = [PlacedImage(b"a", 2, ImageShape(6, (1,), (2, 3))), PlacedImage(b"b", 8, ImageShape(2, (1,), (1, 2)))]
    expected = torch.tensor(
        [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 5, 7, 8],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 5, 7, 8],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
        ]
    )
    for size in range(1, 13):
        builder, found = BatchBuilder(16, 100, axis_positions), []
        for start in range(0, 12, size):
            count = min(size, 12 - start)
            new = [] if start else [added(9, [5, 5]), seeing(1, [7] * 12, images)]
            others = [ScheduledRequest(9, 2, [3])] if new else []
            inputs = build(builder, StepPlan(0, [], new, [ScheduledRequest(1, count, [0] * bool(new)), *others])).inputs
            assert inputs.axis_positions is not None
            found.append(inputs.axis_positions[:, :count])
            assert not others or inputs.axis_positions[:, count:].tolist() == [[0, 1]] * 3
        assert torch.equal(torch.cat(found, 1), expected)
        builder.states[1].extend([4])
        inputs = build(builder, StepPlan(1, [], [], [ScheduledRequest(1, 1, [])])).inputs
        assert inputs.axis_positions is None and inputs.positions.tolist() == [9]
        assert inputs.cached_lengths.tolist() == [12]
    # Preempted and computed again with what was generated, from the middle of an image on.
    again = seeing(2, [7] * 12 + [4, 4, 4], images, computed=7)
    again.prompt_length = 12
    inputs = build(
        BatchBuilder(16, 100, axis_positions), StepPlan(0, [], [again], [ScheduledRequest(2, 8, [0])])
    ).inputs
    assert inputs.axis_positions is not None
    assert torch.equal(inputs.axis_positions, torch.cat([expected[:, 7:], torch.tensor([[9, 10, 11]] * 3)], 1))
