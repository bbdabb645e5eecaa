"""Token ids to text while they are being generated, and the texts that end an answer."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from sophserve.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns the ids of one sequence into text, step by step.

    What push and finish return, joined, equals `tokenizer.decode(all ids)` for any ids. Text comes as soon as no
    later id can change it, so half a character is never returned. The cost of an id does not grow with the sequence.

    shown: special tokens that are left in the text even where skip_special_tokens leaves out the others.
    spaces_between_special_tokens is vLLM's name for what only tokenizers written in Python do; as with every
    tokenizer of the `tokenizers` library, it changes nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._skipped = tokenizer.special_ids.difference(shown) if skip_special_tokens else frozenset()
        byte_level = tokenizer.decoder_types == ("ByteLevel",)
        self._text: _ByteText | _WindowText = _ByteText(tokenizer) if byte_level else _WindowText(tokenizer)

    def push(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that has become certain."""
        return self._text.push([index for index in ids if index not in self._skipped])

    def finish(self) -> str:
        """Return the rest. No push may follow."""
        return self._text.finish()


class _ByteText:
    """For byte-level BPE: the text is the UTF-8 decoding of all tokens' bytes.

    Python replaces each maximal part of a broken character by one U+FFFD, as Rust's from_utf8_lossy does, and a part
    is known to be broken at the byte that breaks it: what comes out early never changes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes, ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowText:
    """For every other decoder: the text of the newest ids is what they add to the ids just before them.

    The window begins with ids whose text is out already (the context), enough that it does not look like the beginning
    of a sequence, where decoders strip spaces. It ends where characters do: a run of byte tokens is one broken
    character for each byte unless all of it is UTF-8, so nothing is certain before the run has ended.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in tokenizer.decoder_types
        self._window: list[int] = []
        self._context = 0
        self._context_text = ""

    def push(self, ids: list[int]) -> str:
        self._window += filter(self._tokenizer.in_vocabulary, ids)
        if len(self._window) == self._context or self._tokenizer.is_byte_token(self._window[-1]):
            return ""
        text = self._decode(self._window)
        if self._byte_level and text.endswith("\ufffd"):
            return ""
        new = text[len(self._context_text) :]
        last_text = self._decode(self._window[-1:])
        if last_text:
            self._window, text = self._window[-1:], last_text
        self._context, self._context_text = len(self._window), text
        return new

    def finish(self) -> str:
        return self._decode(self._window)[len(self._context_text) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class StopTextBuffer:
    """Finds the first stop text in a text that comes in parts, however it is cut into parts.

    The first is the one that is complete first; of those that end at the same character, the longest. What may be the
    beginning of a stop text is held back. Takes time linear in the text (Knuth, Morris and Pratt's search for each
    stop text). include_stop_str_in_output leaves the stop text itself in the output.
    """

    def __init__(self, stops: Sequence[str], include_stop_str_in_output: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._include = include_stop_str_in_output
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text. Returns the text to give out, and the stop text that was found: no push may follow it."""
        if not self._stops:
            return text, None
        for position, character in enumerate(text):
            found = [stop for number, stop in enumerate(self._stops) if self._advance(number, character)]
            if found:
                stop = max(found, key=len)
                text = self._held + text[: position + 1]
                self._held = ""
                return (text if self._include else text[: -len(stop)]), stop
        text = self._held + text
        keep = len(text) - max(self._matched)
        self._held = text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """Return what was held back: the text ended without a stop text."""
        rest, self._held = self._held, ""
        return rest

    def _advance(self, number: int, character: str) -> bool:
        """Whether that stop text is complete with this character."""
        stop, matched = self._stops[number], self._matched[number]
        while matched and stop[matched] != character:
            matched = self._borders[number][matched - 1]
        matched += stop[matched] == character
        self._matched[number] = matched
        return matched == len(stop)


def _borders(stop: str) -> list[int]:
    """For each prefix of stop, the length of its longest proper prefix that also ends it."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        length += stop[index] == stop[length]
        borders[index] = length
    return borders
