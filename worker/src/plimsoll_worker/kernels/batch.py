"""What attention must know of a step: which tokens belong to whom and where their keys and values lie.

Everything a kernel needs on the card is a tensor, so that a captured CUDA graph is replayed with new
contents; the two host bounds only choose grids. Lists of spans, one Python object a sequence, were the
alternative: they read the device or rebuild masks at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """New tokens of several sequences, one sequence after another."""

    block_tables: Tensor
    """(sequences, width) int32: the cache block of each page of a sequence."""
    context_lens: Tensor
    """(sequences) int32: tokens in the cache after this step's are written; 0 is a padding row."""
    query_start: Tensor
    """(sequences + 1) int32: the first row of each sequence's new tokens."""
    positions: Tensor
    """(tokens) int64, 0 for a sequence's first."""
    slots: Tensor
    """(tokens) int64: the cache slot (block * block_size + place) each token's key and value are written to;
    -1 is padding and is not written."""
    max_query_len: int
    """The most new tokens of a sequence. 1 promises that row i is sequence i's only new token."""
    max_context_len: int
    """No context is longer."""
    block_size: int
    """Tokens of a page."""
