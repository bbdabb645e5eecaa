"""The tokens of a vocabulary that meet the marks of a thought."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from sophserve.grammar.masks import bits
from sophserve.grammar.vocabulary import Vocabulary
from sophserve.sampling import Thought

# Bytes of blanks that may stand behind a thought, in tokens of nothing else.
MOST_BLANKS = 4
_BLANKS = b" \n"


class ThoughtTokens:
    """What is found out once for all answers of a model."""

    def __init__(self, vocabulary: Vocabulary, thought: Thought) -> None:
        self.opening, self.closing = thought.opening.encode(), thought.closing.encode()
        self._vocabulary = vocabulary
        self._opens: dict[bytes, int] = {}

    def that_open(self, begun: bytes) -> int:
        """As bits, the tokens that go on with the opening mark, of which there is this beginning."""
        if begun not in self._opens:
            mark = self.opening.removeprefix(begun)
            near = self._beginning_with(mark[:1])
            self._opens[begun] = bits(index for index, text in near if mark.startswith(text) or text.startswith(mark))
        return self._opens[begun]

    def that_go_beyond(self, tail: bytes) -> Iterator[tuple[int, bytes]]:
        """The tokens that complete the closing mark behind that text and do not end there, and what follows it."""
        for beginning, tokens in self._beyond.items():
            if tail.endswith(beginning):
                yield from tokens

    @cached_property
    def blanks(self) -> list[int]:
        """As bits, the tokens of nothing but blanks, by how many there may be at most."""
        lengths = {index: len(text) for index, text in self._beginning_with(_BLANKS) if not text.strip(_BLANKS)}
        return [bits(index for index, length in lengths.items() if length <= most) for most in range(MOST_BLANKS + 1)]

    @cached_property
    def _beyond(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """By the beginning of the closing mark that stands before them."""
        found: dict[bytes, list[tuple[int, bytes]]] = {}
        for size in range(1, len(self.closing)):
            beginning, end = self.closing[:size], self.closing[size:]
            for index, text in self._beginning_with(end[:1]):
                if text.startswith(end) and (rest := text[len(end) :].lstrip()):
                    found.setdefault(beginning, []).append((index, rest))
        for index, text in enumerate(self._vocabulary.tokens):
            if self.closing in text and (rest := text.partition(self.closing)[2].lstrip()):
                found.setdefault(b"", []).append((index, rest))
        return found

    def _beginning_with(self, first: bytes) -> Iterator[tuple[int, bytes]]:
        return ((index, self._vocabulary.tokens[index]) for index in self._vocabulary.beginning_with(first))
