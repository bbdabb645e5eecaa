"""What the engine hands to those who asked: one delta for each step of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import msgspec

from sophserve.errors import SophserveError
from sophserve.link.messages import TokenLogprob

FinishReason = Literal["stop", "length", "abort", "error"]


class PromptLogprobTable(Sequence[list[TokenLogprob] | None]):
    """For each token of a prompt its logprob, then the most probable ones; None where there is none. They are numbers
    in arrays, a tenth of the memory, and become objects when they are read."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._width = 0
        self._token_ids, self._logprobs, self._ranks = bytearray(), bytearray(), bytearray()

    def add(self, start: int, count: int, token_ids: bytes, logprobs: bytes, ranks: bytes) -> None:
        """Take over a PromptLogprobs message (sophserve.link.messages), whose count is always the same."""
        if not self._width:
            self._width = 1 + count
            self._token_ids, self._logprobs = (bytearray(4 * self._length * self._width) for _ in range(2))
            self._ranks = bytearray(4 * self._length)
        begin, end = 4 * start * self._width, 4 * start * self._width + len(token_ids)
        self._token_ids[begin:end], self._logprobs[begin:end] = token_ids, logprobs
        self._ranks[4 * start : 4 * start + len(ranks)] = ranks

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> list[TokenLogprob] | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[TokenLogprob] | None]: ...

    def __getitem__(self, index: int | slice) -> list[TokenLogprob] | list[list[TokenLogprob] | None] | None:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        rank = self._width and memoryview(self._ranks).cast("i")[index]
        if not rank:
            return None
        row = slice(index * self._width, (index + 1) * self._width)
        ids, logprobs = memoryview(self._token_ids).cast("i")[row], memoryview(self._logprobs).cast("f")[row]
        return list(map(TokenLogprob, ids, logprobs, (rank, *range(1, self._width))))


class OutputDelta(msgspec.Struct):
    """What one step adds to one sequence.

    text may lag behind token_ids: half characters and possible beginnings of stop texts are held back, and come with
    a later delta. Concatenated over a sequence, text is exactly the answer.

    logprobs: for each of token_ids the chosen token first, then the most probable ones in falling order.
    prompt_logprobs: with the first delta, one entry a prompt token, None for the first of them.
    accepted_tokens, rejected_tokens: how many of the tokens were guessed (see docs/internals.md), and how many guesses
    were computed in vain.
    reasoning_tokens: how many of the tokens so far, beyond those that earlier deltas counted, belong to the thought
    that params.thought describes, its marks included.
    queue_time: seconds that the sequence waited for its first step.
    stop_reason: the stop text or the stop token id that ended the sequence. error: what a sequence that could not go
    on raises at its reader.
    """

    text: str = ""
    token_ids: list[int] = []
    logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: Sequence[list[TokenLogprob] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    reasoning_tokens: int = 0
    queue_time: float = 0.0
    error: SophserveError | None = None
