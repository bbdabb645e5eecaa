"""One sequence that the engine is generating."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from sophserve.engine.block_pool import BlockKey, block_key
from sophserve.link.messages import Pooling
from sophserve.sampling import SamplingParams


@dataclass(eq=False, slots=True)
class Request:
    """Scheduling state. `computed` counts the tokens whose keys and values are in the cache or will be by the plans
    already sent; `pending` the sampled tokens that those plans will still give; `crashes` how often the worker was
    lost while it ran this request and gave no new token of it; `admitted` says whether it ever owned blocks.
    `pooling`: the prompt's pooled hidden states stand for the one token that is wanted."""

    id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    end_token_ids: list[int]
    bad_word_ids: list[list[int]] = field(default_factory=list)
    root_key: BlockKey = b""
    priority: int = 0
    pooling: Pooling | None = None
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    remembered: int = 0
    computed: int = 0
    pending: int = 0
    cached_tokens: int = 0
    admitted: bool = False
    crashes: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Sorts requests: the lowest priority number first, then the first to arrive."""
        return self.priority, self.id

    @property
    def known(self) -> int:
        """Tokens whose ids are known: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def length(self) -> int:
        """Tokens including the pending ones."""
        return self.known + self.pending

    @property
    def to_compute(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return self.length - self.computed

    @property
    def exhausted(self) -> bool:
        """Whether the plans already sent generate the last token that it may have."""
        return len(self.output) + self.pending >= self.max_tokens

    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.prompt + self.output

    def encoded(self) -> bytes:
        """token_ids as little-endian int32."""
        return array("i", self.token_ids()).tobytes()

    def keys(self, block_size: int) -> list[BlockKey]:
        """The keys of all blocks that known tokens fill."""
        full = self.known // block_size
        for index in range(len(self.block_keys), full):
            parent = self.block_keys[-1] if self.block_keys else self.root_key
            tokens = self._tokens(index * block_size, (index + 1) * block_size)
            self.block_keys.append(block_key(parent, tokens))
        return self.block_keys

    def _tokens(self, start: int, end: int) -> list[int]:
        """A part of token_ids."""
        first = len(self.prompt)
        return self.prompt[start:end] + self.output[max(0, start - first) : max(0, end - first)]
