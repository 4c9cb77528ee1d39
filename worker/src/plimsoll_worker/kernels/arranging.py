"""x as the tensor cores meet numbers of fewer bits, and its sums over steps.

A register of 32 bits holds the bytes of four neighbouring columns, and what one mask takes out of it is every
second of them. So that the multiplication reads whole lines of x all the same, the columns of a step are laid
out in the order in which masks take them. Weights of INT4 have minimums, which multiply sums of x alone: they
are taken here, once, not by every program that meets the row. The norm in front happens on the way.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next

PIECE = 2048
"""Columns a program arranges where no norm needs the whole row."""
SUM_OF = tl.constexpr(16.0)
"""What sums are divided by, so that those of FP16 are finite."""


@triton.jit
def _arranged(
    x,
    places,
    norm_weight,
    out,
    sums,
    eps,
    offset,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    WORD: tl.constexpr,
    INT4: tl.constexpr,
    NORM: tl.constexpr,
    CHOSEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK columns of a row of x (rows, WIDTH), or with CHOSEN of one of the rows `places`, normed and
    arranged, → (rows, STEPS * BLOCK_K); with INT4 their sums over steps too (2, rows, STEPS)."""
    # A step is read in turns, one for each number of a word of WORD bytes.
    TURNS: tl.constexpr = WORD * (1 + INT4)
    WORDS: tl.constexpr = 16 // WORD
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    turn = place % BLOCK_K // (BLOCK_K // TURNS)
    word = place % (BLOCK_K // TURNS)
    column = place // BLOCK_K * BLOCK_K + word // WORDS * (WORDS * TURNS) + word % WORDS * WORD
    column += turn % WORD + turn // WORD * 16
    inside = column < WIDTH
    if NORM:
        factor = tl.load(norm_weight + column, mask=inside, other=0.0).to(tl.float32) + offset
    await_inputs(PDL)
    release_next(PDL)
    source = tl.load(places + row) if CHOSEN else row
    value = tl.load(x + source * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps) * factor
    kept = value.to(out.dtype.element_ty)
    there = place < STEPS * BLOCK_K
    tl.store(out + row * (STEPS * BLOCK_K) + place, kept, mask=there)
    if INT4:
        total = tl.sum(tl.reshape(kept.to(tl.float32), [BLOCK // BLOCK_K, BLOCK_K]), axis=1) / SUM_OF
        step = tl.program_id(1) * (BLOCK // BLOCK_K) + tl.arange(0, BLOCK // BLOCK_K)
        high = total.to(sums.dtype.element_ty)
        low = (total - high.to(tl.float32)).to(sums.dtype.element_ty)
        at = sums + row * STEPS + step
        tl.store(at, high, mask=step < STEPS)
        tl.store(at + tl.num_programs(0) * STEPS, low, mask=step < STEPS)


def arranged(
    x: Tensor,
    *,
    step: int,
    word: int,
    int4: bool,
    places: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x (rows, inputs), or its rows `places` (rows) int64, or their norm, for steps of `step` columns whose
    numbers come in words of `word` bytes → (the same with zeros up to whole steps (rows, steps * step), where
    `int4` its sums over steps in two parts, what 16 bit hold of them and the rest, (2, rows, steps), divided
    by SUM_OF)."""
    rows, width = x.shape if places is None else (places.shape[0], x.shape[1])
    steps = triton.cdiv(width, step)
    out = x.new_empty(rows, steps * step)
    sums = x.new_empty(2, rows, steps if int4 else 0)
    device = card(x.device)
    block = triton.next_power_of_2(steps * step)
    if norm_weight is None:
        block = min(block, PIECE)
    _arranged[(rows, triton.cdiv(steps * step, block))](
        x.contiguous(),
        x if places is None else places,
        x if norm_weight is None else norm_weight,
        out,
        sums,
        eps,
        offset,
        WIDTH=width,
        STEPS=steps,
        BLOCK_K=step,
        BLOCK=block,
        WORD=word,
        INT4=int4,
        NORM=norm_weight is not None,
        CHOSEN=places is not None,
        PDL=device.dependent_launch,
        num_warps=8 if block <= 8192 else 16,
        **device.options,
    )
    return out, sums
