"""One sequence that the engine is generating."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import takewhile

from sophserve.engine.block_pool import BlockKey, block_key
from sophserve.link.images import ImageShape, PlacedImage, SharedPixels
from sophserve.link.messages import AddedRequest, Pooling
from sophserve.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Item:
    """An image that placeholder tokens of a prompt stand for, from position `start` on. digest: the SHA-256 of all that
    their embeddings depend on."""

    digest: bytes
    start: int
    shape: ImageShape
    pixels: SharedPixels

    @property
    def length(self) -> int:
        """How many placeholders it has."""
        return self.shape.tokens

    @property
    def end(self) -> int:
        """The position behind its last placeholder."""
        return self.start + self.length


@dataclass(eq=False, slots=True)
class Request:
    """Scheduling state.

    computed: tokens whose keys and values are in the cache. Of the plans already sent, scheduled: the tokens that they
    compute; guessed: those that they may compute beyond that; pending: the steps of which each will give a token.
    latest: the number of the last plan that it is in.
    admitted: whether it ever owned blocks. background: whether it comes behind all that are not, and gives way to them
    even while it runs.
    pooling: the prompt's pooled hidden states stand for the one token that is wanted. items: in the order of their
    places, which do not overlap. owner: whose other answers this one may be like. prediction: what it is thought to be.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    end_token_ids: list[int]
    bad_word_ids: list[list[int]] = field(default_factory=list)
    root_key: BlockKey = b""
    items: list[Item] = field(default_factory=list)
    priority: int = 0
    background: bool = False
    pooling: Pooling | None = None
    owner: bytes = b""
    prediction: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    remembered: int = 0
    computed: int = 0
    scheduled: int = 0
    guessed: int = 0
    pending: int = 0
    latest: int = 0
    cached_tokens: int = 0
    admitted: bool = False

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts requests: those in the background last; the lowest priority number first, then the first to arrive."""
        return self.background, self.priority, self.id

    @property
    def known(self) -> int:
        """Tokens whose ids are known: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def length(self) -> int:
        """Tokens including the pending ones."""
        return self.known + self.pending

    @property
    def planned(self) -> int:
        """Tokens whose keys and values are in the cache or will be by the plans already sent."""
        return self.computed + self.scheduled

    @property
    def to_compute(self) -> int:
        """Tokens still to be planned before the next one can be sampled."""
        # Written out: it is asked for several times a step.
        return len(self.prompt) + len(self.output) + self.pending - self.computed - self.scheduled

    @property
    def is_decoding(self) -> bool:
        """Whether one token is left to be planned, and that is no part of an item."""
        return self.to_compute == 1 and not (self.items and self.items[-1].end > self.planned)

    def items_ahead(self) -> list[Item]:
        """Those that have placeholders which no plan computes yet."""
        return self.items[bisect_right(self.items, self.planned, key=lambda item: item.end) :]

    @property
    def exhausted(self) -> bool:
        """Whether the plans already sent generate the last token that it may have."""
        return len(self.output) + self.pending >= self.max_tokens

    @property
    def of_every_token(self) -> bool:
        """Whether something is wanted of every token of the prompt, each of which has to be computed for that."""
        return self.params.prompt_logprobs is not None or self.pooling == "mean"

    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.prompt + self.output

    def for_worker(self) -> AddedRequest:
        """All that a worker must know to go on from here."""
        return AddedRequest(
            self.id,
            array("i", self.token_ids()).tobytes(),
            len(self.prompt),
            self.computed,
            self.seed,
            self.params.for_worker,
            self.end_token_ids,
            self.bad_word_ids,
            self.params.allowed_mask,
            self.pooling,
            [PlacedImage(item.digest, item.start, item.shape) for item in self.items],
            self.owner,
            array("i", self.prediction).tobytes(),
        )

    def keys(self, block_size: int) -> list[BlockKey]:
        """The keys of all blocks that known tokens fill."""
        full = self.known // block_size
        for index in range(len(self.block_keys), full):
            parent = self.block_keys[-1] if self.block_keys else self.root_key
            start, end = index * block_size, (index + 1) * block_size
            self.block_keys.append(block_key(parent, self._tokens(start, end), self._extra_key(start, end)))
        return self.block_keys

    def _extra_key(self, start: int, end: int) -> bytes:
        """Of the items that have placeholders between these positions: which, and where they begin from `start`."""
        if not self.items:
            return b""
        first = bisect_right(self.items, start, key=lambda item: item.end)
        touching = takewhile(lambda item: item.start < end, self.items[first:])
        return b"".join(item.digest + struct.pack("<q", item.start - start) for item in touching)

    def _tokens(self, start: int, end: int) -> list[int]:
        """A part of token_ids."""
        first = len(self.prompt)
        return self.prompt[start:end] + self.output[max(0, start - first) : max(0, end - first)]
