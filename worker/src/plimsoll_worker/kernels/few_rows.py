"""Linear layers for few rows: bound by reading the weights once, at the memory's speed.

Two kernels with the same prologue (RMS norm) and epilogues (bias, activation of gate and up, residual):

- `_row`, for one row, multiplies on the ordinary arithmetic units: weights go straight to registers.
- `_rows`, for more, lets the tensor cores multiply a tile of weights (as the left operand, so that its many
  rows fill the instruction) with the few rows of x.

The norm costs no pass of its own: rms(x) is one factor a row, so x * weight is multiplied while the squares
are summed, and the factor comes last. A program of `_row` asks for its first weights before the kernel in
front has ended (`launching`), so the memory stays busy from one layer to the next.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.norm import activated
from plimsoll_worker.kernels.reference import Activation


@triton.jit
def finish(
    value,
    gate,
    column,
    row,
    bias,
    residual,
    out,
    scale,
    outputs,
    mask,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
):
    """Epilogue of `value` at (row, column), broadcast; with GATED `gate` is the other half's."""
    if BIAS:
        if GATED:
            gate += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
            value += tl.load(bias + outputs + column, mask=mask, other=0.0).to(tl.float32)
        else:
            value += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        value *= activated(gate, SILU)
    at = row * outputs + column
    if RESIDUAL:
        value = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32) + scale * value
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _weights(
    weight,
    row,
    start,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_N, BLOCK_K): rows `row` (BLOCK_N) of the weight from column `start`; 0 past its edges."""
    k = start + tl.arange(0, BLOCK_K)
    at = weight + row.to(tl.int64)[:, None] * INPUTS + k[None, :]
    if INPUTS % BLOCK_K == 0 and OUTPUTS % BLOCK_N == 0:
        return tl.load(at, mask=start < INPUTS, other=0.0, eviction_policy="evict_first")
    return tl.load(at, mask=(row < OUTPUTS)[:, None] & (k < INPUTS)[None, :], other=0.0)


@triton.jit
def _row(
    x,
    norm_weight,
    weight,
    bias,
    residual,
    out,
    eps,
    offset,
    scale,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of x (INPUTS) → BLOCK_N of OUTPUTS columns. OUTPUTS is the width of the answer: with GATED the
    weight has twice as many rows."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    up = weight + OUTPUTS * INPUTS if GATED else weight
    tile = _weights(weight, column, 0, INPUTS, OUTPUTS, BLOCK_N, BLOCK_K)
    tile_up = _weights(up, column, 0, INPUTS, OUTPUTS, BLOCK_N, BLOCK_K) if GATED else tile
    await_inputs(PDL)
    release_next(PDL)
    squares = tl.zeros([BLOCK_K], tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, INPUTS, BLOCK_K):
        # The next tile is on its way while this one is multiplied. Two were not faster, on an H100.
        ahead = start + BLOCK_K
        later = _weights(weight, column, ahead, INPUTS, OUTPUTS, BLOCK_N, BLOCK_K)
        later_up = _weights(up, column, ahead, INPUTS, OUTPUTS, BLOCK_N, BLOCK_K) if GATED else later
        there = (start + k < INPUTS) | (INPUTS % BLOCK_K == 0)
        part = tl.load(x + start + k, mask=there, other=0.0).to(tl.float32)
        if NORM:
            squares += part * part
            part *= tl.load(norm_weight + start + k, mask=there, other=0.0).to(tl.float32) + offset
        acc += tile.to(tl.float32) * part[None, :]
        if GATED:
            acc_up += tile_up.to(tl.float32) * part[None, :]
        tile = later
        tile_up = later_up
    value = tl.sum(acc, axis=1)
    gate = value
    if GATED:
        value = tl.sum(acc_up, axis=1)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / INPUTS + eps)
        value *= factor
        gate *= factor
    finish(
        value, gate, column, 0, bias, residual, out, scale, OUTPUTS, column < OUTPUTS,
        BIAS, RESIDUAL, GATED, SILU,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _rows(
    x,
    norm_weight,
    weight,
    bias,
    residual,
    out,
    rows,
    eps,
    offset,
    scale,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """At most BLOCK_M rows of x (rows, INPUTS) → BLOCK_N of OUTPUTS columns."""
    EVEN: tl.constexpr = (INPUTS % BLOCK_K == 0) and (OUTPUTS % BLOCK_N == 0)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < OUTPUTS
    k = tl.arange(0, BLOCK_K)
    row = tl.arange(0, BLOCK_M)
    live = row < rows
    line = weight + column.to(tl.int64)[:, None] * INPUTS + k[None, :]
    await_inputs(PDL)
    release_next(PDL)
    squares = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc_other = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, INPUTS, BLOCK_K):
        there = start + k < INPUTS
        if EVEN:
            tile = tl.load(line + start)
            tile_other = tl.load(line + OUTPUTS * INPUTS + start) if GATED else tile
        else:
            mask = inside[:, None] & there[None, :]
            tile = tl.load(line + start, mask=mask, other=0.0)
            tile_other = tl.load(line + OUTPUTS * INPUTS + start, mask=mask, other=0.0) if GATED else tile
        part = tl.load(
            x + row[None, :] * INPUTS + start + k[:, None], mask=live[None, :] & there[:, None], other=0.0
        )
        if NORM:
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, axis=0)
            factor = tl.load(norm_weight + start + k, mask=there, other=0.0).to(tl.float32) + offset
            part = (wide * factor[:, None]).to(tile.dtype)
        acc = tl.dot(tile, part, acc, input_precision="ieee")
        if GATED:
            acc_other = tl.dot(tile_other, part, acc_other, input_precision="ieee")
    if NORM:
        factor = tl.rsqrt(squares / INPUTS + eps)
        acc *= factor[None, :]
        acc_other *= factor[None, :]
    value = acc_other if GATED else acc
    finish(
        value, acc, column[:, None], row[None, :], bias, residual, out, scale, OUTPUTS,
        inside[:, None] & live[None, :], BIAS, RESIDUAL, GATED, SILU,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a weight is cut: `block_n` of its rows a program, `block_k` of its columns a step."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 1


# The best on an H200, or within 1 % of a layer's time, and within 1.5 % on an H100, in chains of whole layers
# of Llama-3.1-8B and Qwen3-0.6B shapes, 2026-11-23 (tests/gpu/kernels_on_gpu.py --sections tune).
ONE_ROW = (Tiles(4, 2048, 8), Tiles(4, 1024, 4), Tiles(4, 512, 2), Tiles(4, 256, 1))
ONE_ROW_LARGE = (Tiles(2, 1024, 2), Tiles(4, 512, 2), Tiles(4, 256, 1))
ONE_ROW_GATED = (Tiles(1, 512, 1), Tiles(1, 256, 1))
ROWS_NARROW = Tiles(16, 256, 2, 6)
ROWS = Tiles(16, 256, 2, 4)
ROWS_WIDE = Tiles(32, 256, 4, 3)
LARGE = 1 << 25
"""Elements of a weight from which it is large, unless its rows are short."""
SHORT_INPUTS = 2048
NARROW, WIDE = 4096, 16384
"""Outputs up to which a weight is narrow, and from which it is wide."""


def tiles_for(rows: int, inputs: int, outputs: int, *, gated: bool) -> Tiles:
    """Tiles for x (rows, inputs) and `outputs` columns of answer. Steps divide `inputs` where any can."""
    if rows == 1:
        large = inputs * outputs > LARGE and inputs >= SHORT_INPUTS
        family = ONE_ROW_GATED if gated else ONE_ROW_LARGE if large else ONE_ROW
        return next((tiles for tiles in family if inputs % tiles.block_k == 0), family[-1])
    wide = gated or outputs > WIDE
    tiles = ROWS_WIDE if wide else ROWS_NARROW if outputs <= NARROW else ROWS
    return dataclasses.replace(tiles, block_k=max(64, math.gcd(inputs, tiles.block_k)))


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    gated: Activation | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    tiles: Tiles | None = None,
) -> Tensor:
    """x (rows, inputs), normed with `norm_weight`, times weight (outputs, inputs); plus bias; `gated`: the
    weight's first half activated times its second; `residual` (rows, outputs) plus `scale` times that, into
    the residual's memory. → (rows, outputs, or half of it with `gated`)."""
    rows, inputs = x.shape
    outputs = weight.shape[0] // (2 if gated else 1)
    tiles = tiles or tiles_for(rows, inputs, outputs, gated=gated is not None)
    out = x.new_empty(rows, outputs) if residual is None else residual
    device = card(x.device)
    shape = {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "NORM": norm_weight is not None,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "GATED": gated is not None,
        "SILU": gated == "silu",
        "PDL": device.dependent_launch,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    grid = (triton.cdiv(outputs, tiles.block_n),)
    tensors = (
        x.contiguous(),
        x if norm_weight is None else norm_weight,
        weight,
        x if bias is None else bias,
        out,
        out,
    )
    if rows == 1:
        _row[grid](*tensors, eps, offset, scale, **shape, **device.options)
    else:
        block_m = max(16, triton.next_power_of_2(rows))
        _rows[grid](*tensors, rows, eps, offset, scale, BLOCK_M=block_m, **shape, **device.options)
    return out
