"""How tokens are chosen, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SampleParams:
    """How to choose one token for each row, in the order in which the fields are applied.

    mask: int32 `[rows, ceil(vocab / 32)]` or None; bit i of word j allows token 32j + i.
    bias_rows, bias_ids, bias_values: int64, int64, float32 `[entries]`: added to `logits[row, id]`.
    penalty_rows, penalty_ids: int64 `[entries]`, each (row, token) that has occurred, at most once;
        prompt_or_output counts as occurred for repetition, output_counts (int32 `[entries]`) for the other two.
    repetition, presence, frequency: float32 `[rows]`; neutral 1, 0, 0.
    temperature: float32 `[rows]`; 0 takes the most probable token, the lowest id among equals.
    top_k: int32 `[rows]`, 0 = all. top_p, min_p: float32 `[rows]`, neutral 1 and 0.
    seeds, positions: int64 `[rows]`: the draw depends on these two numbers and the row's logits alone.
    num_logprobs: int: how many of the most probable tokens to report; -1 = report no logprobs at all.

    Logprobs are those of the model: log-softmax of the logits before any field of this class is applied.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor
    repetition: Tensor | None = None
    presence: Tensor | None = None
    frequency: Tensor | None = None
    penalty_rows: Tensor | None = None
    penalty_ids: Tensor | None = None
    output_counts: Tensor | None = None
    bias_rows: Tensor | None = None
    bias_ids: Tensor | None = None
    bias_values: Tensor | None = None
    mask: Tensor | None = None
    num_logprobs: int = -1


@dataclass(frozen=True)
class SampleResult:
    """token_ids: int64 `[rows]`. With logprobs: those of the chosen tokens, float32 `[rows]`, their ranks (1 = most
    probable), int64 `[rows]`, and the most probable ids and logprobs, `[rows, num_logprobs]`, in falling order."""

    token_ids: Tensor
    logprobs: Tensor | None = None
    ranks: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
