"""KV blocks: reference counts, and the prefix cache of blocks that hold known tokens.

A block is in one of three states. Owned: at least one request has it. Cached: no one owns it, but it holds the keys and
values of known tokens and is found again by their key, until it is evicted, the longest unused first. Free: neither.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence

BlockKey = bytes


def block_key(parent: BlockKey, token_ids: Sequence[int], extra: bytes = b"") -> BlockKey:
    """The key of a full block: a SHA-256 chained over its parent's key, so that equal keys mean equal prefixes. extra:
    what its keys and values depend on besides."""
    return hashlib.sha256(parent + array("i", token_ids).tobytes() + extra).digest()


def root_key(cache_salt: str, adapter: bytes = b"") -> BlockKey:
    """What to chain the first block's key to, so that requests with another salt, or another adapter (its SHA-256),
    share nothing."""
    if not cache_salt and not adapter:
        return b""
    # Hashed, and with a beginning that no block has: a salt must not pass for the contents or the key of a block.
    return hashlib.sha256(b"root:%d:%b%b" % (len(adapter), adapter, cache_salt.encode())).digest()


class BlockPool:
    """`num_blocks` blocks of one worker group's KV caches. Every operation costs O(blocks that it names).

    on_eviction: is told the block and the key of what leaves the prefix cache, before the block is written anew.
    """

    def __init__(self, num_blocks: int, on_eviction: Callable[[int, BlockKey], None] = lambda *_: None) -> None:
        self.num_blocks = num_blocks
        self._on_eviction = on_eviction
        self.reset()

    def reset(self) -> None:
        """Make every block free, as it is at first."""
        self._owners = array("i", bytes(4 * self.num_blocks))
        self._untouched = 0  # blocks from here on were never used: their memory has not been touched yet
        self._free: list[int] = []
        self._cached: dict[int, None] = {}  # insertion order is the order of release
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}

    @property
    def available(self) -> int:
        """Blocks that allocate can hand out: free and cached ones."""
        return self.num_blocks - self._untouched + len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that requests own."""
        return self.num_blocks - self.available

    @property
    def idle(self) -> bool:
        """Whether every block is free or cached, as it must be while there are no requests. Takes a millisecond for a
        million blocks."""
        return self.used == 0 and self._owners.tobytes() == bytes(4 * self.num_blocks)

    def allocate(self, count: int) -> list[int]:
        """Own `count` blocks, which must be available; free ones first, then the longest unused cached ones."""
        if count > self.available:
            raise ValueError(f"{count} blocks wanted, {self.available} available")
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            elif self._untouched < self.num_blocks:
                block = self._untouched
                self._untouched += 1
            else:
                block = next(iter(self._cached))
                del self._cached[block]
                key = self._key_of.pop(block)
                del self._block_of[key]
                self._on_eviction(block, key)
            self._owners[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one ownership of each block. The last ones of a sequence are evicted before the first ones."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def find(self, keys: Sequence[BlockKey]) -> list[int]:
        """The blocks that hold the longest known beginning of a chain of keys. They are not owned yet."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def cached_among(self, blocks: Sequence[int]) -> int:
        """How many of the blocks no one owns: owning them makes that many fewer available."""
        return sum(self._owners[block] == 0 for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Own blocks that `find` returned."""
        for block in blocks:
            if self._owners[block] == 0:
                del self._cached[block]
            self._owners[block] += 1

    def remember(self, block: int, key: BlockKey) -> bool:
        """Let an owned block that now holds known tokens be found by its key. The first block with a key keeps it; says
        whether this one is it."""
        if key in self._block_of or block in self._key_of:
            return False
        self._block_of[key] = block
        self._key_of[block] = key
        return True

    def forget_all(self) -> None:
        """Empty the prefix cache. Owned blocks stay owned."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._block_of.clear()
