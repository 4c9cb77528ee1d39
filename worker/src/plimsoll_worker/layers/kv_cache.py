"""Keys and values of all sequences, in blocks of a fixed number of tokens that any sequence may hold.

    sequence A  [ 0 ][ 3 ]            its block table: the cache's blocks 0 and 3
    sequence B       [ 1 ][ 2 ]       1 and 2
    slot of a token = block * block_size + place within the block

A contiguous cache per sequence was the alternative: it must reserve the longest context for everyone
(Kwon et al. 2023, arXiv:2309.06180).
"""

from __future__ import annotations

import torch

from plimsoll_worker.config import ModelConfig


class KVCache:
    """The pool: per layer one tensor of keys and one of values, (slots, kv_heads, head_dim)."""

    def __init__(
        self, config: ModelConfig, *, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        shape = (blocks * block_size, config.kv_head_count, config.head_dim)
        # zero_() touches every page: what the pool takes must show before the first request, not during one.
        self.keys = [
            torch.empty(shape, dtype=dtype, device=device).zero_() for _ in range(config.layer_count)
        ]
        self.values = [
            torch.empty(shape, dtype=dtype, device=device).zero_() for _ in range(config.layer_count)
        ]

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def bytes(self) -> int:
        return sum(pool.nbytes for pool in (*self.keys, *self.values))
