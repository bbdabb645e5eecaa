"""The flat batch that a step plan becomes."""

from __future__ import annotations

from array import array
from typing import Any

import torch

from sophserve.link.messages import AddedRequest, ScheduledRequest, StepPlan
from sophserve.sampling import SamplingParams
from sophserve.worker.batch import BatchBuilder, as_tensor


def added(identity: int, tokens: list[int], **options: Any) -> AddedRequest:
    return AddedRequest(identity, array("i", tokens).tobytes(), len(tokens), 0, 0, SamplingParams(**options), [], [])


def test_rows_lie_where_the_blocks_say() -> None:
    builder = BatchBuilder(block_size=4, vocab_size=100)
    requests = [added(1, list(range(10, 20))), added(2, [7])]
    batch = builder.build(StepPlan(0, [], requests, [ScheduledRequest(2, 1, [5]), ScheduledRequest(1, 6, [9, 3, 8])]))
    inputs = batch.inputs
    assert inputs.ids.tolist() == [7, 10, 11, 12, 13, 14, 15] and inputs.positions.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert inputs.slot_mapping.tolist() == [20, 36, 37, 38, 39, 12, 13]
    assert inputs.block_tables.tolist() == [[5, 0], [9, 3]] and inputs.max_length == 6
    assert [state.id for state in batch.sampled] == [2] and batch.sample_rows.tolist() == [0]
    batch.sampled[0].extend([70])
    # The prompt goes on within a block, and the other request has gone.
    batch = builder.build(StepPlan(1, [2], [], [ScheduledRequest(1, 3, [])]))
    inputs = batch.inputs
    assert inputs.ids.tolist() == [16, 17, 18] and inputs.slot_mapping.tolist() == [14, 15, 32]
    assert inputs.input_lengths.tolist() == [3] and inputs.cached_lengths.tolist() == [6]
    assert inputs.block_tables.tolist() == [[9, 3, 8]] and not batch.sampled
    assert batch.sample_rows.shape == (0,) and list(builder.states) == [1]
    assert {tensor.dtype for tensor in vars(inputs).values() if isinstance(tensor, torch.Tensor)} == {torch.int32}


def test_arrays_as_tensors() -> None:
    for code, dtype in (("i", torch.int32), ("q", torch.int64), ("f", torch.float32)):
        assert torch.equal(as_tensor(array(code, [1, 2])), torch.tensor([1, 2], dtype=dtype))
        assert as_tensor(array(code)).dtype == dtype
