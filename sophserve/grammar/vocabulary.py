"""The tokens of a tokenizer as bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from sophserve.errors import CheckpointError
from sophserve.text.tokenizer import Tokenizer


class Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and the tokens of a text that is forced."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, size: int, end_token_ids: list[int]) -> None:
        self.eos_token_id = end_token_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(index) for index in range(size)]
        self.special_token_ids = sorted(index for index in tokenizer.special_ids if index < size)
        self._tokenizer = tokenizer
        specials = sorted(tokenizer.token_text(index) for index in self.special_token_ids)
        self._special = re.compile("|".join(re.escape(text) for text in specials if len(text) > 1) or r"(?!)")

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids whose bytes are exactly the text's, special tokens not among them."""
        text = text.decode() if isinstance(text, bytes) else text
        if special := self._special.search(text):
            middle = special.start() + 1
            return self(text[:middle]) + self(text[middle:])
        wanted = text.encode()
        # SentencePiece puts a space before a text; behind a new line it does not.
        for start in (b"", b"\n", b" \n"):
            ids = self._tokenizer.encode(start.decode().strip(" ") + text, add_special_tokens=False)
            while start and ids:
                start = start.removeprefix(self._bytes(ids.pop(0)))
            if b"".join(map(self._bytes, ids)) == wanted:
                return ids
        return self._longest_first(wanted)

    def beginning_with(self, first: bytes) -> Iterator[int]:
        """The tokens whose first byte is one of these. Takes little longer than there are many of them."""
        for found in re.finditer(b"[%b]" % re.escape(first), self._first_bytes):
            if self.tokens[found.start()]:
                yield found.start()

    @cached_property
    def _first_bytes(self) -> bytes:
        return b"".join(text[:1] or b"\0" for text in self.tokens)

    def _bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id] if token_id < len(self.tokens) else b""

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        ids = {text: index for index, text in reversed(list(enumerate(self.tokens)))}
        for index in self.special_token_ids:
            if ids.get(self.tokens[index]) == index:
                del ids[self.tokens[index]]
        return ids

    def _longest_first(self, text: bytes) -> list[int]:
        found = []
        longest = max(map(len, self._ids))
        while text:
            length = next((n for n in range(longest, 0, -1) if text[:n] in self._ids), None)
            if length is None:
                break
            found.append(self._ids[text[:length]])
            text = text[length:]
        return found


def check_same_tokens(first: Path, second: Path) -> None:
    """Raise CheckpointError if what two checkpoints call the same token is not, but for special and added ones, which
    tuned models rename."""
    files = [directory / "tokenizer.json" for directory in (first, second)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    one, other = (Tokenizer.from_directory(directory).plain_tokens() for directory in (first, second))
    different = [index for index, text in other.items() if one.get(index, text) != text]
    if different or not one.keys() & other.keys():
        raise CheckpointError(
            f"its vocabulary is not that of the model: {len(different)} of its {len(other)} tokens are others"
            + (f", such as {other[different[0]]!r} in place of {one[different[0]]!r}" if different else "")
            + "; give a model with the same tokenizer"
        )
