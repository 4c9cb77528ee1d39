"""Who holds which block of the KV cache. Numbers alone: the tensors are in `layers.kv_cache`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockPool:
    """`blocks` blocks of `block_size` tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take."""
        return -(-tokens // self.block_size)

    def can_grow(self, table: Sequence[int], tokens: int) -> bool:
        """Whether a sequence with this block table can be given room for `tokens` tokens in all."""
        return self.needed(tokens) - len(table) <= len(self._free)

    def grow(self, table: list[int], tokens: int) -> None:
        """Give the sequence room for `tokens` tokens in all. `can_grow` must hold."""
        while len(table) < self.needed(tokens):
            table.append(self._free.pop())

    def release(self, table: list[int]) -> None:
        """Take back every block of the sequence."""
        self._free.extend(reversed(table))
        table.clear()

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Every block is free or held by exactly one sequence. Raises AssertionError that names the block."""
        held = Counter(self._free)
        for table in tables:
            held.update(table)
        for block in range(self.blocks):
            assert held[block] == 1, f"block {block} is held {held[block]} times, free list included"
        assert len(held) == self.blocks, f"{len(held) - self.blocks} blocks are held that do not exist"
