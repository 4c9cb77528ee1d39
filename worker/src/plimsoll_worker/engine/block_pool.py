"""Who holds which block of the KV cache, and which blocks hold what is worth keeping. Numbers alone: the
tensors are in `layers.kv_cache`.

    free list        blank blocks, taken first
    cached           blocks nobody holds whose content is known: taken last, the longest unused one first
    held             by one sequence, or by several that share a prefix (reference counts)

A radix tree over tokens was the alternative to chained hashes; it finds prefixes that end within a block,
which a cache of whole blocks cannot use.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

BlockHash = bytes
"""Names a block by its tokens and all before them."""


def root_hash(salt: str) -> BlockHash:
    """Where the chain of a prompt begins. Requests with different salts never share a block."""
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


def block_hash(parent: BlockHash, tokens: Sequence[int]) -> BlockHash:
    """The name of a block of `tokens` after the block named `parent`."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()


class BlockPool:
    """`blocks` blocks of `block_size` tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._blank = list(range(blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * blocks
        self._hash: list[BlockHash | None] = [None] * blocks
        self._by_hash: dict[BlockHash, int] = {}

    @property
    def free(self) -> int:
        """Blocks nobody holds, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def used(self) -> int:
        return self.blocks - self.free

    def needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take."""
        return -(-tokens // self.block_size)

    def match(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The blocks that hold the longest known beginning of a chain."""
        found = []
        for name in hashes:
            block = self._by_hash.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def can_admit(self, shared: Sequence[int], tokens: int) -> bool:
        """Whether a sequence that begins with the blocks `shared` can be given room for `tokens` tokens in
        all."""
        unheld = sum(self._holders[block] == 0 for block in shared)
        return self.needed(tokens) - len(shared) <= self.free - unheld

    def share(self, table: list[int], shared: Sequence[int]) -> None:
        """Let the sequence hold the blocks `shared`, as `match` found them."""
        for block in shared:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1
        table.extend(shared)

    def can_grow(self, table: Sequence[int], tokens: int) -> bool:
        """Whether a sequence with this block table can be given room for `tokens` tokens in all."""
        return self.needed(tokens) - len(table) <= self.free

    def grow(self, table: list[int], tokens: int) -> None:
        """Give the sequence room for `tokens` tokens in all. `can_grow` must hold."""
        while len(table) < self.needed(tokens):
            table.append(self._take())

    def publish(self, block: int, name: BlockHash) -> None:
        """A held block is full: whoever asks for `name` may share it. The first block of a name keeps it."""
        if self._hash[block] is None and name not in self._by_hash:
            self._hash[block] = name
            self._by_hash[name] = block

    def release(self, table: list[int]) -> None:
        """Take back every block of the sequence. Its end is given away before its beginning, which others are
        likelier to share."""
        for block in reversed(table):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._hash[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None
        table.clear()

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            forgotten = self._hash[block]
            assert forgotten is not None
            del self._by_hash[forgotten]
            self._hash[block] = None
        self._holders[block] = 1
        return block

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Every block is blank, cached or held by as many sequences as are counted. Raises AssertionError
        that names the block."""
        held = Counter(block for table in tables for block in table)
        unheld = Counter([*self._blank, *self._cached])
        for block in range(self.blocks):
            holders, named = self._holders[block], self._hash[block]
            assert held[block] == holders, f"block {block} is held {held[block]} times, counted are {holders}"
            assert unheld[block] == (holders == 0), (
                f"block {block} is {unheld[block]} times free and held {holders} times"
            )
            assert block not in self._cached or named is not None, f"block {block} is cached without a name"
            assert named is None or self._by_hash.get(named) == block, f"block {block} lost its name"
        strangers = (held.keys() | unheld.keys()) - set(range(self.blocks))
        assert not strangers, f"blocks {sorted(strangers)} do not exist"
        assert len(self._by_hash) == sum(name is not None for name in self._hash), "a name has no block"
