"""What the engine hands to those who asked: one delta for each step of a sequence."""

from __future__ import annotations

from typing import Literal

import msgspec

from sophserve.errors import SophserveError

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(msgspec.Struct, array_like=True):
    """One token's log-probability under the model, and its rank among the vocabulary (1 = most probable)."""

    token_id: int
    logprob: float
    rank: int


class OutputDelta(msgspec.Struct):
    """What one step adds to one sequence.

    text may lag behind token_ids: half characters and possible beginnings of stop texts are held back, and come with
    a later delta. Concatenated over a sequence, text is exactly the answer.

    logprobs: for each of token_ids the chosen token first, then the most probable ones in falling order.
    prompt_logprobs: with the first delta, one entry a prompt token, None for the first of them.
    queue_time: seconds that the sequence waited for its first step.
    stop_reason: the stop text or the stop token id that ended the sequence. error: what a sequence that could not go
    on raises at its reader.
    """

    text: str = ""
    token_ids: list[int] = []
    logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    queue_time: float = 0.0
    error: SophserveError | None = None
