"""Which tokens a request has seen, kept as growing tensors so that a step costs nothing but its newest token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from sophserve.sampling import SamplingParams


class PenaltyState:
    """Every distinct token of prompt and output, and how often it occurs in the output."""

    def __init__(self, tokens: array[int], prompt_length: int) -> None:
        given = torch.frombuffer(tokens, dtype=torch.int32).long()
        self._ids, where = given.unique(return_inverse=True)
        self._size = len(self._ids)
        self._index = dict(zip(self._ids.tolist(), range(self._size), strict=True))
        self._counts = where[prompt_length:].bincount(minlength=self._size).int()

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether any of the parameters looks at earlier tokens."""
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def add_output(self, token_id: int) -> None:
        index = self._index.setdefault(token_id, self._size)
        if index == self._size:
            if self._size == len(self._ids):
                self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
                self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
            self._ids[index] = token_id
            self._counts[index] = 0
            self._size += 1
        self._counts[index] += 1

    def entries(self, further: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Token ids, int64 `[distinct]`, and their counts in the output, int32 `[distinct]`, if these tokens followed
        it."""
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        if not further:
            return ids, counts
        new: dict[int, int] = {}
        for token_id in further:
            if token_id not in self._index:
                new.setdefault(token_id, self._size + len(new))
        ids, counts = torch.cat([ids, ids.new_tensor([*new])]), torch.cat([counts, counts.new_zeros(len(new))])
        for token_id in further:
            counts[self._index.get(token_id, new.get(token_id, 0))] += 1
        return ids, counts
