"""A linear layer of quantized weights for several rows, on the tensor cores.

A tile of the weight is widened in registers and multiplied as the left operand, so that no wide copy of it
exists anywhere, with all rows of x at once where they fit. What a tile has too few programs for is cut along
the inputs too: each part leaves its sums in memory, and the program that comes last adds them, always in the
same order.

With x in FP8 (a scale a row, `fp8`) both sides stay as they are, at twice the rate.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.few_rows import finish
from plimsoll_worker.kernels.launching import ask_for, await_inputs, card, release_next
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized_row import group_of
from plimsoll_worker.kernels.reference import Activation
from plimsoll_worker.kernels.widening import bytes_to, nibbles_to
from plimsoll_worker.launch.precision import Precision


@triton.jit
def _end(
    acc,
    line,
    column,
    row,
    rows,
    x_scales,
    scales,
    bias,
    residual,
    out,
    scale,
    OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    FP8_X: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
):
    """Scales of rows and columns, then the epilogue of `few_rows`, of acc (BLOCK_N, BLOCK_M)."""
    live = row < rows
    if ROW_SCALES:
        height = 2 * OUTPUTS if GATED else OUTPUTS
        acc *= tl.load(scales + line, mask=line < height, other=0.0).to(tl.float32)[:, None]
    if FP8_X:
        acc *= tl.load(x_scales + row, mask=live, other=0.0)[None, :]
    value = acc
    gate = acc
    if GATED:
        pairs = tl.permute(tl.reshape(acc, [BLOCK_N // 16, 2, 8, BLOCK_M]), [0, 2, 3, 1])
        gate, value = tl.split(pairs)
        gate = tl.reshape(gate, [BLOCK_N // 2, BLOCK_M])
        value = tl.reshape(value, [BLOCK_N // 2, BLOCK_M])
    finish(
        value, gate, column[:, None], row[None, :], bias, residual, out, scale, OUTPUTS,
        (column < OUTPUTS)[:, None] & live[None, :], BIAS, RESIDUAL, GATED, SILU,
    )  # fmt: skip


@triton.jit
def _of_group(factors, line, group, HEIGHT: tl.constexpr, GROUPS: tl.constexpr, LINES: tl.constexpr):
    """(BLOCK_N): what belongs to the group."""
    inside = (line < HEIGHT) & (group < GROUPS)
    return tl.load(factors + (line // LINES) * GROUPS + group, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["rows", "parts"])
def _tiles(
    x,
    x_scales,
    numbers,
    scales,
    minimums,
    bias,
    residual,
    out,
    sums,
    arrived,
    rows,
    parts,
    scale,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    INT4: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    FP8_X: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_M rows of x (rows, INPUTS) → BLOCK_N rows of the weight, or half as many of the answer's columns
    with GATED. Scales belong to GROUP columns of LINES rows; GROUP 0: to a row. BLOCK_K columns a
    step, and a group is whole steps."""
    HEIGHT: tl.constexpr = 2 * OUTPUTS if GATED else OUTPUTS
    WIDTH: tl.constexpr = INPUTS // 2 if INT4 else INPUTS
    STEPS: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    GROUPS: tl.constexpr = 1 if GROUP == 0 else (INPUTS + GROUP - 1) // GROUP
    SAME: tl.constexpr = 1 if GROUP == 0 else GROUP // BLOCK_K
    BLOCK_B: tl.constexpr = BLOCK_K // 2 if INT4 else BLOCK_K
    EVEN: tl.constexpr = (INPUTS % BLOCK_K == 0) and (HEIGHT % BLOCK_N == 0)
    of_tile = tl.arange(0, BLOCK_N)
    line = tl.program_id(0) * BLOCK_N + of_tile
    column = line
    if GATED:
        # Gate and up by turns of eight, as a thread holds an accumulator's rows.
        line = (
            tl.program_id(0) * (BLOCK_N // 2) + of_tile // 16 * 8 + of_tile % 8 + of_tile // 8 % 2 * OUTPUTS
        )
        column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    part = tl.program_id(2)
    place = tl.arange(0, BLOCK_B)
    # Of each 32 columns the first 16 lie in the low halves of 16 bytes.
    k = place // 16 * 32 + place % 16 if INT4 else place
    at = numbers + line.to(tl.int64)[:, None] * WIDTH + place[None, :]
    at_x = x + row.to(tl.int64)[None, :] * INPUTS + k[:, None]
    share = tl.cdiv(STEPS, parts)
    first = part * share
    last = min(first + share, STEPS)
    wide: tl.constexpr = out.dtype.element_ty
    if GROUP:
        factor = _of_group(scales, line, first // SAME, HEIGHT, GROUPS, LINES)
        least = _of_group(minimums, line, first // SAME, HEIGHT, GROUPS, LINES) if INT4 else factor
    lines = first * BLOCK_B + 128 * tl.arange(0, 4)[None, :]
    ask_for(numbers + tl.minimum(line, HEIGHT - 1).to(tl.int64)[:, None] * WIDTH + lines, PDL)
    await_inputs(PDL)
    release_next(PDL)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(first, last):
        start = step * BLOCK_K
        if EVEN:
            tile = tl.load(at + step * BLOCK_B)
        else:
            mask = (line < HEIGHT)[:, None] & (step * BLOCK_B + place < WIDTH)[None, :]
            tile = tl.load(at + step * BLOCK_B, mask=mask, other=0.0)
        there = (start + k < INPUTS) | (INPUTS % BLOCK_K == 0)
        some = tl.load(at_x + start, mask=live[None, :] & there[:, None], other=0.0)
        if INT4:
            # Scales of the next step are on their way while this one is multiplied.
            next_factor = _of_group(scales, line, (step + 1) // SAME, HEIGHT, GROUPS, LINES)
            next_least = _of_group(minimums, line, (step + 1) // SAME, HEIGHT, GROUPS, LINES)
            other = tl.load(at_x + start + 16, mask=live[None, :] & there[:, None], other=0.0)
            low, high = nibbles_to(
                tile,
                tl.broadcast_to(factor[:, None], [BLOCK_N, BLOCK_B]),
                tl.broadcast_to(least[:, None], [BLOCK_N, BLOCK_B]),
                wide,
                ASM,
            )
            acc = tl.dot(low, some, acc, input_precision="ieee")
            acc = tl.dot(high, other, acc, input_precision="ieee")
            factor, least = next_factor, next_least
        elif GROUP:
            next_factor = _of_group(scales, line, (step + 1) // SAME, HEIGHT, GROUPS, LINES)
            acc += factor[:, None] * tl.dot(bytes_to(tile, wide, ASM), some, input_precision="ieee")
            factor = next_factor
        elif FP8_X:
            acc = tl.dot(tile, some, acc)
        else:
            acc = tl.dot(bytes_to(tile, wide, ASM), some, acc, input_precision="ieee")
    if not SPLIT:
        _end(
            acc, line, column, row, rows, x_scales, scales, bias, residual, out, scale,
            OUTPUTS, BLOCK_M, BLOCK_N, GROUP == 0, FP8_X, BIAS, RESIDUAL, GATED, SILU,
        )  # fmt: skip
    else:
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        tile_id = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        mine = sums + tile_id.to(tl.int64) * (parts * SIZE)
        mine += of_tile[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(mine + part * SIZE, acc)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile_id, 1, sem="acq_rel") == parts - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for each in range(parts):
                total += tl.load(mine + each * SIZE, cache_modifier=".cg")
            tl.store(arrived + tile_id, 0)
            _end(
                total, line, column, row, rows, x_scales, scales, bias, residual, out, scale,
                OUTPUTS, BLOCK_M, BLOCK_N, GROUP == 0, FP8_X, BIAS, RESIDUAL, GATED, SILU,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiles:
    """`block_n` rows of the weight and `block_m` rows of x a program, `block_k` columns a step, the columns
    among `parts` programs."""

    block_n: int
    block_m: int
    block_k: int
    parts: int
    warps: int
    stages: int


# (block_n, block_k, warps, stages), the best or within 3 % of a layer's time on an H100 in chains of layers
# of Llama-3.1-8B's shape, 2026-11-23 (tests/gpu/quantized_on_gpu.py --sections tune).
FEW = (32, 128, 2, 5)
FEW_TALL = (64, 128, 4, 4)
FEW_INT4 = (64, 128, 4, 4)
FEW_FP8 = (64, 256, 4, 4)
SOME = (64, 128, 4, 4)
SOME_INT4 = (128, 128, 8, 3)
MORE = (64, 128, 4, 3)
MORE_DENSE = (128, 128, 8, 3)
MANY = (128, 64, 8, 4)
TALL = 16384
"""Rows of a weight from which it is tall."""
MOST_PARTS = 8


def tiles_for(rows: int, weight: QuantizedMatrix, *, narrow: bool, multiprocessors: int) -> Tiles:
    """Tiles for x (rows, inputs); narrow: x is FP8. The inputs are cut so that there are programs for about
    eight warps a multiprocessor."""
    int4 = weight.precision is Precision.INT4
    if rows <= 16:
        cut = FEW_FP8 if narrow else FEW_INT4 if int4 else FEW_TALL if weight.outputs > TALL else FEW
    elif rows <= 64:
        cut = SOME_INT4 if int4 else SOME
    elif rows <= 128:
        cut = MORE_DENSE if int4 or narrow else MORE
    else:
        cut = MANY
    block_n, block_k, warps, stages = cut
    band = max(16, min(256, triton.next_power_of_2(rows)))
    programs = triton.cdiv(weight.outputs, block_n) * triton.cdiv(rows, band)
    parts = max(1, min(MOST_PARTS, 8 * multiprocessors // warps // programs))
    return Tiles(block_n, band, block_k, parts, warps, stages)


MOST_TILES = 1 << 14
"""Tiles of a launch whose inputs are cut."""


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """How many parts of a tile have come: zeros between launches."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


def tile_linear(
    x: Tensor,
    weight: QuantizedMatrix,
    bias: Tensor | None = None,
    *,
    x_scales: Tensor | None = None,
    gated: Activation | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    tiles: Tiles | None = None,
) -> Tensor:
    """`few_rows.fused_linear` for any number of rows, without norm. x may be FP8 with `x_scales` (rows) FP32,
    when the weight is FP8 with a scale a row; the answer is then of the weight's dtype."""
    rows, inputs = x.shape
    outputs = weight.outputs // (2 if gated else 1)
    device = card(x.device)
    tiles = tiles or tiles_for(
        rows, weight, narrow=x_scales is not None, multiprocessors=device.multiprocessors
    )
    group, lines = group_of(weight)
    block_k = math.gcd(tiles.block_k, group)
    columns, bands = triton.cdiv(weight.outputs, tiles.block_n), triton.cdiv(rows, tiles.block_m)
    assert tiles.parts == 1 or columns * bands <= MOST_TILES
    out = x.new_empty(rows, outputs, dtype=weight.dtype) if residual is None else residual
    size = tiles.parts * columns * bands * tiles.block_n * tiles.block_m if tiles.parts > 1 else 1
    _tiles[(columns, bands, tiles.parts)](
        x.contiguous(),
        out if x_scales is None else x_scales,
        weight.numbers,
        weight.scales,
        out if weight.minimums is None else weight.minimums,
        out if bias is None else bias,
        out,
        out,
        torch.empty(size, dtype=torch.float32, device=x.device),
        _arrivals(x.device),
        rows,
        tiles.parts,
        scale,
        INPUTS=inputs,
        OUTPUTS=outputs,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=block_k,
        SPLIT=tiles.parts > 1,
        INT4=weight.precision is Precision.INT4,
        GROUP=group,
        LINES=lines,
        FP8_X=x_scales is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated is not None,
        SILU=gated == "silu",
        ASM=device.compiles,
        PDL=device.dependent_launch,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **device.options,
    )
    return out
