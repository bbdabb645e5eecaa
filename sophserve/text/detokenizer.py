"""Token ids to text while they are being generated, and the texts that end an answer."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from weakref import WeakValueDictionary

from sophserve.text.tokenizer import Tokenizer

# Ids.
_SLICE = 4096


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
        hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._skipped = hidden.difference(shown) if shown else hidden
        byte_level = tokenizer.decoder_types == ("ByteLevel",)
        self._text: _ByteText | _WindowText = _ByteText(tokenizer) if byte_level else _WindowText(tokenizer)

    def push(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that has become certain."""
        return self._text.push([index for index in ids if index not in self._skipped])

    def finish(self) -> str:
        """Return the rest. No push may follow."""
        return self._text.finish()


def decode_in_slices(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """What `tokenizer.decode` returns, by calls that hold up other threads for milliseconds at most."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    texts = [detokenizer.push(ids[start : start + _SLICE]) for start in range(0, len(ids), _SLICE)]
    return "".join([*texts, detokenizer.finish()])


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


class StopTexts:
    """What a search for several texts needs to know of them (Aho and Corasick's automaton). State 0 is the beginning of
    every text; every other state is a beginning of one or more.

    depth: how many characters a state stands for. ending: the longest text that ends there, None if none does.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self.depth = [0]
        self.ending: list[str | None] = [None]
        parents: list[tuple[int, str]] = [(0, "")]
        for stop in filter(None, stops):
            state = 0
            for character in stop:
                following = self._next.get((state, character))
                if following is None:
                    following = self._next[state, character] = len(self.depth)
                    self.depth.append(self.depth[state] + 1)
                    self.ending.append(None)
                    parents.append((state, character))
                state = following
            self.ending[state] = stop
        # Where to go on if no text goes on with a character: to the longest beginning that also ends a state's text.
        self._shorter = [0] * len(self.depth)
        for state in sorted(range(1, len(self.depth)), key=self.depth.__getitem__):
            parent, character = parents[state]
            if parent:
                self._shorter[state] = self.after(self._shorter[parent], character)
            self.ending[state] = self.ending[state] or self.ending[self._shorter[state]]

    def after(self, state: int, character: str) -> int:
        """The state after one more character. Takes constant time, on average over a text."""
        while (following := self._next.get((state, character))) is None:
            if not state:
                return 0
            state = self._shorter[state]
        return following


# Tables that some answer is using.
_known: WeakValueDictionary[tuple[str, ...], StopTexts] = WeakValueDictionary()


def _tables(stops: Sequence[str]) -> StopTexts:
    key = tuple(stops)
    tables = _known.get(key)
    if tables is None:
        tables = _known[key] = StopTexts(key)
    return tables


class StopTextBuffer:
    """Finds the first stop text in a text that comes in parts, however it is cut into parts.

    The first is the one that is complete first; of those that end at the same character, the longest. What may be the
    beginning of a stop text is held back. Takes time linear in the text, however many stop texts there are.
    include_stop_str_in_output leaves the stop text itself in the output.
    """

    def __init__(self, stops: Sequence[str], include_stop_str_in_output: bool = False) -> None:
        self._tables = _tables(stops) if stops else None
        self._state = 0
        self._include = include_stop_str_in_output
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text. Returns the text to give out, and the stop text that was found: no push may follow it."""
        if self._tables is None:
            return text, None
        state, after, ending = self._state, self._tables.after, self._tables.ending
        for position, character in enumerate(text):
            state = after(state, character)
            if (stop := ending[state]) is not None:
                text = self._held + text[: position + 1]
                self._held = ""
                return (text if self._include else text[: -len(stop)]), stop
        self._state = state
        text = self._held + text
        keep = len(text) - self._tables.depth[state]
        self._held = text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """Return what was held back: the text ended without a stop text."""
        rest, self._held = self._held, ""
        return rest
