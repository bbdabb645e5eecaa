"""Token ids to text while they are being generated, and the texts that end an answer."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from weakref import WeakValueDictionary

from sophserve.text.tokenizer import Tokenizer

# Ids.
_SLICE = 4096
# Bytes of UTF-8 that may wait for the last one of their character.
_MOST_WAITING = 3
# Ids before a text that are looked at to know how it goes on.
_MOST_BEFORE = 256


class IncrementalDetokenizer:
    """Turns the ids of one sequence into text, step by step.

    What push and finish return, joined, equals `tokenizer.decode(all ids)` for any ids. Text comes as soon as no
    later id can change it, so half a character is never returned. The cost of an id does not grow with the sequence.

    shown: special tokens that are left in the text even where skip_special_tokens leaves out the others. before: ids
    that the sequence goes on from, such as a prompt: what is returned is then what `tokenizer.decode` adds to their
    text, and the whole of a character that they end within. Decoders take a space from the beginning of a text only.
    spaces_between_special_tokens is vLLM's name for what only tokenizers written in Python do; as with every
    tokenizer of the `tokenizers` library, it changes nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        shown: Collection[int] = (),
        before: Sequence[int] = (),
    ) -> None:
        hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._skipped = hidden.difference(shown) if shown else hidden
        byte_level = tokenizer.decoder_types == ("ByteLevel",)
        self._text: _ByteText | _WindowText = _ByteText(tokenizer) if byte_level else _WindowText(tokenizer)
        # What stands in the text before for a character that is not complete; it comes again unless it is completed.
        self._broken = self._text.follow(backwards(before, self._skipped))

    def push(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that has become certain."""
        return self._new(self._text.push([index for index in ids if index not in self._skipped]))

    def finish(self) -> str:
        """Return the rest. No push may follow."""
        return self._new(self._text.finish())

    def _new(self, text: str) -> str:
        if text and self._broken:
            text, self._broken = without_broken(text, self._broken), 0
        return text


def decode_in_slices(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """What `tokenizer.decode` returns, by calls that hold up other threads for milliseconds at most."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    texts = [detokenizer.push(ids[start : start + _SLICE]) for start in range(0, len(ids), _SLICE)]
    return "".join([*texts, detokenizer.finish()])


def backwards(ids: Sequence[int], hidden: Collection[int]) -> Iterator[int]:
    """The ids at the end that are not hidden, the last one first."""
    return (index for index in islice(reversed(ids), _MOST_BEFORE) if index not in hidden)


def last_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The end of a text, enough to see whether a character goes on behind it. ids: the last one comes first."""
    end = b""
    for index in ids:
        end = tokenizer.token_bytes(index) + end
        if len(end) >= _MOST_WAITING:
            break
    return end


def without_broken(text: str, most: int) -> str:
    """A text without the first ones of the U+FFFD that it begins with."""
    return text[min(most, len(text) - len(text.lstrip("\ufffd"))) :]


class _ByteText:
    """For byte-level BPE: the text is the UTF-8 decoding of all tokens' bytes.

    Python replaces each maximal part of a broken character by one U+FFFD, as Rust's from_utf8_lossy does, and a part
    is known to be broken at the byte that breaks it: what comes out early never changes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def follow(self, ids: Iterable[int]) -> int:
        """Go on from ids, of which the last one comes first. Returns how many U+FFFD end their text for want of more
        bytes."""
        self._decoder.decode(last_bytes(self._tokenizer, ids))
        return bool(self._decoder.getstate()[0])

    def push(self, ids: list[int]) -> str:
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

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

    def follow(self, ids: Iterable[int]) -> int:
        """As in _ByteText. The context is as many ids as it takes to have some text, without bytes at its end: the next
        ones would make one run with them."""
        end: list[int] = []
        for index in filter(self._tokenizer.in_vocabulary, ids):
            end.insert(0, index)
            if not self._tokenizer.is_byte_token(index) and self._decode([index]):
                break
        if len(end) == _MOST_BEFORE:  # bytes, of which the first may be within a character
            return 0
        ordinary = [place for place, index in enumerate(end, 1) if not self._tokenizer.is_byte_token(index)]
        waiting = self._waiting(end)
        complete = len(end) - waiting
        self._context = min(ordinary[-1], complete) if ordinary else complete
        self._context_text = self._decode(end[: self._context])
        self._window = end[: self._context] + end[complete:]
        return waiting

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

    def _waiting(self, ids: list[int]) -> int:
        """How many byte tokens at the end are of a character that is not complete."""
        run = [index if self._tokenizer.is_byte_token(index) else None for index in ids[-_MOST_WAITING:]]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(b"." if index is None else self._tokenizer.token_bytes(index) for index in run))
        return len(decoder.getstate()[0])

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
