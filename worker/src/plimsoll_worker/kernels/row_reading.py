"""What kernels for one row read: words of numbers, what belongs to their groups, and the row itself."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def words_of(
    words,
    row,
    start,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """(BLOCK_N, 4 * CHUNKS) of rows `row` of WIDTH words of four bytes, from word `start`; 0 past the edges.
    Words, because bytes that are kept from one step to the next would each take a register."""
    place = start + tl.arange(0, 4 * CHUNKS)
    at = words + row.to(tl.int64)[:, None] * WIDTH + place[None, :]
    if WIDTH % (4 * CHUNKS) == 0 and OUTPUTS % BLOCK_N == 0:
        return tl.load(at, mask=start < WIDTH, other=0, eviction_policy="evict_first")
    return tl.load(at, mask=(row < OUTPUTS)[:, None] & (place < WIDTH)[None, :], other=0)


@triton.jit
def factors_of(
    factors,
    row,
    start,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """(BLOCK_N, CHUNKS): what belongs to a group of GROUP words and LINES rows. GROUP 0: 1."""
    if GROUP == 0:
        return tl.full([row.shape[0], CHUNKS], 1.0, tl.float32)
    else:  # noqa: RET505 - what follows a return is compiled too
        GROUPS: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
        group = (start + 4 * tl.arange(0, CHUNKS)) // GROUP
        at = factors + (row // LINES)[:, None] * GROUPS + group[None, :]
        mask = (row < OUTPUTS)[:, None] & (group < GROUPS)[None, :]
        return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def inputs_of(
    x,
    norm_weight,
    first,
    offset,
    INPUTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STRIDE: tl.constexpr,
    NORM: tl.constexpr,
):
    """(CHUNKS, 8) in FP32 of x from column `first`, STRIDE columns a chunk, times the norm's weight; and
    unnormed."""
    k = first + STRIDE * tl.arange(0, CHUNKS)[:, None] + tl.arange(0, 8)[None, :]
    mask = (k < INPUTS) | (INPUTS % (STRIDE * CHUNKS) == 0)
    raw = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        return raw * (tl.load(norm_weight + k, mask=mask, other=0.0).to(tl.float32) + offset), raw
    else:  # noqa: RET505
        return raw, raw
