"""Texts with placeholders in them, to tokens."""

from __future__ import annotations

from sophserve.text.tokenizer import Tokenizer


def tokens_between(
    tokenizer: Tokenizer, text: str, placeholder: str, placeholder_id: int, add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of what stands before, between and behind the placeholders of a text: one list more than there are of
    them. A placeholder that is no token is cut out of the text before. Raises RequestError."""
    if tokenizer.encode(placeholder, add_special_tokens=False) != [placeholder_id]:
        first, *others = text.split(placeholder)
        return [
            tokenizer.encode(first, add_special_tokens),
            *(tokenizer.encode(part, add_special_tokens=False) if part else [] for part in others),
        ]
    return split(tokenizer.encode(text, add_special_tokens), placeholder_id)


def split(ids: list[int], placeholder_id: int) -> list[list[int]]:
    """The same of token ids."""
    between: list[list[int]] = []
    start = 0
    for _ in range(ids.count(placeholder_id)):
        end = ids.index(placeholder_id, start)
        between.append(ids[start:end])
        start = end + 1
    return [*between, ids[start:]]
