"""Sets of tokens as masks: one bit a token, the lowest first."""

from __future__ import annotations

from collections.abc import Iterable


def bits(token_ids: Iterable[int]) -> int:
    """A number with these bits set."""
    marked = bytearray(max(token_ids := list(token_ids), default=0) // 8 + 1)
    for token_id in token_ids:
        marked[token_id >> 3] |= 1 << (token_id & 7)
    return int.from_bytes(marked, "little")


def as_mask(mask: int, vocab_size: int) -> bytes:
    """The number's bits as whole 32-bit words."""
    return mask.to_bytes(-(-vocab_size // 32) * 4, "little")
