"""Which tokens a request may not be given next. What does not change is worked out once, not at each step."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from copy import copy

from sophserve.errors import RequestError
from sophserve.grammar.masks import as_mask, bits
from sophserve.link.messages import AddedRequest


class TokenRules:
    """The rules of one request, which follow its output through `append`.

    allowed: the mask of allowed_token_ids over the whole vocabulary, as in SampleParams.mask; None allows all.
    bias_ids, bias_values: int64 and float32, logit_bias.
    """

    def __init__(self, added: AddedRequest, vocab_size: int) -> None:
        params = added.params
        self._vocab_size = vocab_size
        self.allowed = None if added.allowed is None else padded_mask(added.allowed, vocab_size)
        self.bias_ids = array("q", params.logit_bias.keys())
        self.bias_values = array("f", params.logit_bias.values())
        self._length = 0
        self._min_length = params.min_tokens
        ends, stops = added.end_token_ids, set(params.stop_token_ids)
        never = [token for token in ends if token not in stops] if params.ignore_eos and params.structured else []
        self._never, self._early = array("q", never), array("q", ends)
        self._words = WordTrie(added.bad_word_ids) if added.bad_word_ids else None

    def append(self, token_id: int) -> None:
        self._length += 1
        if self._words:
            self._words.append(token_id)

    def following(self, token_id: int) -> TokenRules:
        """The rules behind one more token, which leave these as they are."""
        if not self._words and self._length >= self._min_length:
            return self
        rules = copy(self)
        if self._words:
            rules._words = copy(self._words)
        rules.append(token_id)
        return rules

    def banned(self) -> array[int]:
        """Tokens, int64, that may not be chosen next: those that would end too early or complete a bad word."""
        banned = self._early if self._length < self._min_length else self._never
        return banned + array("q", self._words.banned()) if self._words else banned

    def narrowed(self, mask: bytes, form: str = "") -> bytes:
        """A mask without the tokens that may not be chosen next. form: what gave it, which is over where only an end
        can follow. Raises RequestError where nothing is left."""
        banned = self.banned()
        if not banned and self.allowed is None:
            return mask
        given = int.from_bytes(mask, "little")
        wanted = given & ~bits(banned)
        if self.allowed is not None:
            wanted &= int.from_bytes(self.allowed, "little")
        if not wanted and form and self._length >= self._min_length:
            wanted = given & bits(self._early)
        if not wanted:
            names = " and ".join([form, *self._names()] if form else self._names())
            raise RequestError(f"{names} exclude each other: no token is left that fits them all; change one of them")
        return as_mask(wanted, self._vocab_size)

    def _names(self) -> list[str]:
        """Of the parameters that rule something out now."""
        names = {
            "allowed_token_ids": self.allowed is not None,
            "bad_words": bool(self._words and list(self._words.banned())),
            "min_tokens": self._length < self._min_length,
        }
        return [name for name, given in names.items() if given]


class WordTrie:
    """Finds the tokens that would complete one of some token sequences. A step costs as much as there are beginnings
    of them at the end of the output, however many sequences there are."""

    def __init__(self, words: Iterable[list[int]]) -> None:
        self._root = _Node()
        self._active: list[_Node] = []
        for *beginning, last in words:
            node = self._root
            for token in beginning:
                node = node.next.setdefault(token, _Node())
            node.banned.append(last)

    def append(self, token_id: int) -> None:
        candidates = [*self._active, self._root]
        self._active = [node.next[token_id] for node in candidates if token_id in node.next]

    def banned(self) -> Iterable[int]:
        """The last tokens of those sequences that the output ends in, the last token aside."""
        return (token for node in (self._root, *self._active) for token in node.banned)


class _Node:
    def __init__(self) -> None:
        self.next: dict[int, _Node] = {}
        self.banned: list[int] = []


def padded_mask(mask: bytes, vocab_size: int) -> bytes:
    """As whole 32-bit words for each token of the vocabulary, the further ones 0."""
    return mask.ljust(-(-vocab_size // 32) * 4, b"\0")
