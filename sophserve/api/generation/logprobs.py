"""Log-probabilities in the shapes that OpenAI's and vLLM's clients read."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import partial
from typing import Any

from sophserve.api.http.json_pieces import Rows
from sophserve.link.messages import TokenLogprob
from sophserve.text.detokenizer import backwards, last_bytes, without_broken
from sophserve.text.tokenizer import Tokenizer

Entries = Sequence[Sequence[TokenLogprob] | None]

# JSON has no infinity; vLLM's number for a token that could not be chosen.
_LEAST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, entries: Entries) -> list[dict[str, Any]]:
    """`choices[].logprobs.content` of a chat completion."""

    def describe(entry: TokenLogprob) -> dict[str, Any]:
        token = tokenizer.token_bytes(entry.token_id)
        return {
            "token": token.decode(errors="replace"),
            "logprob": max(entry.logprob, _LEAST),
            "bytes": list(token),
        }

    return [
        {**describe(chosen), "top_logprobs": [describe(entry) for entry in top]}
        for chosen, *top in filter(None, entries)
    ]


def chat_logprob_rows(tokenizer: Tokenizer, entries: Entries) -> Rows:
    """The same, made when it is sent."""
    return Rows(partial(chat_logprobs, tokenizer), entries)


def prompt_logprobs(tokenizer: Tokenizer, entries: Entries, most: int | None = None) -> Rows:
    """`prompt_logprobs` as vLLM gives them: by token id, None for the first token. most: how many of each to show
    beside the prompt's own token; None for all."""

    def describe(entry: TokenLogprob) -> dict[str, Any]:
        text = tokenizer.token_text(entry.token_id)
        return {"logprob": max(entry.logprob, _LEAST), "rank": entry.rank, "decoded_token": text}

    def rows(positions: Entries) -> list[dict[str, Any] | None]:
        end = None if most is None else most + 1
        return [
            None if position is None else {str(entry.token_id): describe(entry) for entry in position[:end]}
            for position in positions
        ]

    return Rows(rows, entries)


class CompletionLogprobs:
    """`choices[].logprobs` of a text completion, for one choice, part by part.

    text_offset counts characters of the answer (of prompt and answer with echo). A character of several tokens begins
    where the first one does; special tokens that the text leaves out are empty. before: the prompt, where it is not
    shown itself.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        end = last_bytes(tokenizer, backwards(before, self._hidden))
        self._decoder.decode(end)
        self._begun, self._broken = bool(end), bool(self._decoder.getstate()[0])
        self._offset = 0

    def add(self, token_ids: Sequence[int], entries: Entries) -> dict[str, Any]:
        """The lists for further tokens; entries holds None where there is no logprob."""
        return {
            "tokens": self._texts(token_ids),
            "token_logprobs": self._chosen(entries),
            "top_logprobs": self._top(entries),
            "text_offset": self._offsets(token_ids),
        }

    def rows(self, token_ids: list[Sequence[int]], entries: list[Entries]) -> dict[str, Rows]:
        """The same for several parts together, made when it is sent."""
        return {
            "tokens": Rows(self._texts, *token_ids),
            "token_logprobs": Rows(self._chosen, *entries),
            "top_logprobs": Rows(self._top, *entries),
            "text_offset": Rows(self._offsets, *token_ids),
        }

    def _texts(self, token_ids: Sequence[int]) -> list[str]:
        return list(map(self._tokenizer.token_text, token_ids))

    def _chosen(self, entries: Entries) -> list[float | None]:
        return [position and max(position[0].logprob, _LEAST) for position in entries]  # type: ignore[misc]

    def _top(self, entries: Entries) -> list[dict[str, float] | None]:
        return [position and self._by_text(position) for position in entries]  # type: ignore[misc]

    def _offsets(self, token_ids: Sequence[int]) -> list[int]:
        return list(map(self._advance, token_ids))

    def _by_text(self, position: Sequence[TokenLogprob]) -> dict[str, float]:
        # Different tokens may have the same text: the most probable of them is shown.
        shown: dict[str, float] = {}
        for entry in position:
            text = self._tokenizer.token_text(entry.token_id)
            shown[text] = max(entry.logprob, shown.get(text, _LEAST))
        return shown

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._hidden:
            text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
            if not self._begun:  # many decoders take a space from the beginning of a text
                text = text[max(0, len(text) - len(self._tokenizer.decode([token_id], skip_special_tokens=False))) :]
            if text and self._broken:
                text, self._broken = without_broken(text, 1), False
            self._begun = True
            self._offset += len(text)
        return offset
