"""Guesses of the next tokens: what followed the newest ones where they, or some of them, stood before.

As in prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding) and suffix decoding
(https://arxiv.org/abs/2411.04975), over a table of the last place of each n-gram. Whatever is guessed, the answer is
the same: guesses are computed like any token, and only count if they are what is sampled.
"""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from sophserve.worker.arrays import as_tensor

# Equal tokens before two places beyond which it does not count that there are more.
LONGEST = 32
# Equal tokens after which a match goes on behind some that are others, and within how many that may be.
_RESUMING, _RESUMABLE = 2, 16
# Slots of an index, at least and at most; of what more tokens would need the oldest are forgotten.
FEWEST_SLOTS, MOST_SLOTS = 1 << 9, 1 << 17
# Of one owner's answers, the tokens that are kept in two halves, of which the older one is dropped when both are full;
# and the owners of whom any are.
HALF_TOKENS = 1 << 14
MOST_OWNERS = 64
# New tokens from which on an index is brought up to date by torch, which takes as long as these one by one.
_MANY = 512

# The hash of an n-gram is the sum of its tokens, each times the power of _FACTOR by how far it is from the end, modulo
# 2 ** _BITS; from that of one n-gram that of the next follows (Karp and Rabin, 1987).
_BITS = 60
_MASK = (1 << _BITS) - 1
_FACTOR = random.Random(1).getrandbits(_BITS) | 1


def ngram_hash(gram: Sequence[int]) -> int:
    """By which an n-gram is found."""
    value = 0
    for token in gram:
        value = (value + token) * _FACTOR & _MASK
    return value


class NgramIndex:
    """Where the n-grams of growing tokens occurred last. sizes: the n, in falling order. hashes: of the n-grams at the
    end of what it has taken in."""

    def __init__(self, tokens: array[int], sizes: tuple[int, ...], room: int) -> None:
        bits = (max(FEWEST_SLOTS, min(MOST_SLOTS, room)) - 1).bit_length()
        self.tokens = tokens
        self.hashes = [0] * len(sizes)
        self._tables = [(size, array("i", bytes(4 << bits))) for size in sizes]
        self._leaving = [pow(_FACTOR, size + 1, _MASK + 1) for size in sizes]
        self._shift = _BITS - bits
        self._end = 0  # up to where tokens are in the hashes

    def catch_up(self) -> None:
        """Take in the tokens that have been added, and the n-grams that are followed by something."""
        end = len(self.tokens)
        if end - self._end > _MANY:
            for place, (size, table) in enumerate(self._tables):
                self._take_many(size, table, max(0, self._end - size), end)
                self.hashes[place] = ngram_hash(self.tokens[max(0, end - size) : end])
        else:
            for place in range(self._end, end):
                self._take(place, self.tokens[place])
        self._end = end

    def find(self, tail: array[int], hashes: Sequence[int]) -> int:
        """The place behind the newest of what the index knows that equals the end of `tail`, the longest n-gram first;
        0 if there is none. hashes: of the n-grams at that end."""
        for (size, table), value in zip(self._tables, hashes, strict=True):
            place = table[value >> self._shift]
            if place and self.tokens[place - size : place] == tail[-size:]:
                return place
        return 0

    def _take(self, place: int, token: int) -> None:
        """The n-grams before a token are followed by it, and those that end with it are the newest."""
        tokens, hashes = self.tokens, self.hashes
        for number, (size, table) in enumerate(self._tables):
            value, gone = hashes[number], 0
            if place >= size:
                table[value >> self._shift] = place
                gone = tokens[place - size]
            hashes[number] = (value + token) * _FACTOR - gone * self._leaving[number] & _MASK

    def _take_many(self, size: int, table: array[int], start: int, end: int) -> None:
        """The n-grams from a place on that are followed by something."""
        if end - 1 - start >= size:
            tokens = as_tensor(self.tokens[start : end - 1]).long()
            values = torch.zeros(len(tokens) - size + 1, dtype=torch.long)
            for place in range(size):
                values = (values + tokens[place : place + len(values)]) * _FACTOR  # wraps, which _MASK allows for
            slots = (values & _MASK) >> self._shift
            places = torch.arange(start + size, end, dtype=torch.int32)
            as_tensor(table).scatter_reduce_(0, slots, places, "amax")


class History:
    """What was answered before, by owner: nobody's answers are guesses for anybody else."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._owners: OrderedDict[bytes, deque[NgramIndex]] = OrderedDict()

    def of(self, owner: bytes) -> deque[NgramIndex]:
        """An owner's answers, the newest ones last; those to come will be in it, too."""
        found = self._owners.setdefault(owner, deque(maxlen=2))
        self._owners.move_to_end(owner)
        if len(self._owners) > MOST_OWNERS:
            self._owners.popitem(last=False)
        return found

    def add(self, owner: bytes, answer: array[int]) -> None:
        """Keep an answer, or the end of one that is long."""
        halves = self.of(owner)
        answer = answer[-HALF_TOKENS:]
        if not halves or len(halves[-1].tokens) + len(answer) > HALF_TOKENS:
            halves.append(NgramIndex(array("i"), self._sizes, HALF_TOKENS))
        halves[-1].tokens.extend(answer)
        halves[-1].catch_up()


class Match(NamedTuple):
    """Where a sequence may go on as some tokens do. length: how many before that place are the same."""

    tokens: array[int]
    place: int
    length: int


class Left(NamedTuple):
    """A match that a sequence followed, as it was when that had `end` tokens."""

    match: Match
    end: int


class Lookup:
    """Follows one sequence, and knows what may follow it: as what is predicted goes on, as itself did before, or as
    other answers do. tokens: its own, which grow."""

    def __init__(
        self,
        tokens: array[int],
        sizes: tuple[int, ...],
        prediction: array[int],
        prompt_length: int,
        history: deque[NgramIndex],
    ) -> None:
        self._tokens = tokens
        self._own = NgramIndex(tokens, sizes, len(tokens) + FEWEST_SLOTS)
        self._history = history
        self._predicted: list[NgramIndex] = []
        self._end = 0
        self._match: Match | None = None
        self._left: Left | None = None
        if prediction:
            # Behind the end of the prompt, so that it is found from the first token on.
            begin = tokens[max(0, prompt_length - sizes[0]) : prompt_length]
            self._predicted.append(NgramIndex(begin + prediction, sizes, len(prediction)))
            self._predicted[0].catch_up()

    def match(self) -> Match | None:
        """Where the sequence may go on, as far as it has come."""
        end = len(self._tokens)
        if end > self._end:
            # What is as it was elsewhere needs not be found here, and an index takes longer than following a match.
            self._match = self._going_on(self._tokens[self._end :]) or self._resumed() or self._find()
            self._end = end
        return self._match

    @property
    def new(self) -> bool:
        """Whether nothing was looked for yet."""
        return self._end == 0

    @property
    def length(self) -> int:
        """Of the match that there was last, or of the one that may be resumed."""
        return self._match.length if self._match else self._left.match.length if self._left else 0

    def guesses(self, count: int) -> list[int]:
        """At most so many tokens that follow, by the match that there is."""
        if self._match is None:
            return []
        tokens, place, _ = self._match
        found = tokens[place : place + count].tolist()
        if tokens is self._tokens:  # what goes on at its own end repeats itself
            period = len(tokens) - place
            while len(found) < count:
                found.append(found[-period])
        return found

    def _going_on(self, new: array[int]) -> Match | None:
        """The match so far, if the new tokens are what it said."""
        if self._match is None:
            return None
        tokens, place, length = self._match
        end = place + len(new)
        if tokens[place:end] != new or end == len(tokens):
            return None
        return Match(tokens, end, min(LONGEST, length + len(new)))

    def _resumed(self) -> Match | None:
        """The match that was followed, if only some tokens were others, one for one."""
        if self._match and (self._left is None or self._match.length >= self._left.match.length):
            self._left = Left(self._match, self._end)
        if self._left is None:
            return None
        (tokens, place, length), since = self._left.match, len(self._tokens) - self._left.end
        place += since
        if since > _RESUMABLE or place >= len(tokens):
            self._left = None
        elif since > _RESUMING and tokens[place - _RESUMING : place] == self._tokens[-_RESUMING:]:
            self._left = None
            return Match(tokens, place, max(_RESUMING, length // 2))
        return None

    def _find(self) -> Match | None:
        """The longest of the matches, the first of those that are equally long."""
        self._own.catch_up()
        best = None
        tail = self._tokens[-LONGEST:]
        for index in (*self._predicted, self._own, *reversed(self._history)):
            place = index.find(tail, self._own.hashes)
            if place:
                length = sum(1 for _ in _equal(index.tokens, place, tail))
                if best is None or length > best.length:
                    best = Match(index.tokens, place, length)
        return best


def _equal(tokens: array[int], place: int, tail: array[int]) -> Iterator[int]:
    """The tokens before a place, backwards, as long as they are those at the end of `tail`."""
    before = reversed(tokens[max(0, place - LONGEST) : place])
    for one, other in islice(zip(before, reversed(tail), strict=False), LONGEST):
        if one != other:
            return
        yield one
