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

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels import norm
from plimsoll_worker.kernels.arranging import SUM_OF, arranged
from plimsoll_worker.kernels.few_rows import finish
from plimsoll_worker.kernels.launching import ask_for, await_inputs, card, release_next
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized_row import group_of
from plimsoll_worker.kernels.quantized_tiling import Tiles, tiles_for
from plimsoll_worker.kernels.reference import Activation
from plimsoll_worker.kernels.widening import byte_of, nibble_of
from plimsoll_worker.launch.precision import Precision


@triton.jit
def end_of_tile(
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
def of_group(factors, line, group, HEIGHT: tl.constexpr, GROUPS: tl.constexpr, LINES: tl.constexpr):
    """(BLOCK_N): what belongs to the group."""
    inside = (line < HEIGHT) & (group < GROUPS)
    return tl.load(factors + (line // LINES) * GROUPS + group, mask=inside, other=0.0)


@triton.jit
def _numbers(
    at, start, line, place, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """The weight's numbers from place `start`, 0 past its edges."""
    if EVEN:
        return tl.load(at + start)
    return tl.load(at + start, mask=(line < HEIGHT)[:, None] & (start + place < WIDTH)[None, :], other=0.0)


@triton.jit
def _operand(
    tile,
    turn: tl.constexpr,
    WORD: tl.constexpr,
    INT4: tl.constexpr,
    FP8_X: tl.constexpr,
    wide: tl.constexpr,
    ASM: tl.constexpr,
):
    """What the turn multiplies, in 16 bit, or in 8 as x is."""
    if INT4:
        return nibble_of(tile, turn % WORD * 8 + turn // WORD * 4, wide, ASM)
    elif WORD:  # noqa: RET505 - what follows a return is compiled too
        return byte_of(tile, turn * 8, wide, ASM)
    elif FP8_X:
        return tile
    else:
        return tile.to(tl.float32).to(wide)


@triton.jit
def lines_of_tile(OUTPUTS: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """Rows of the weight that this program multiplies, and columns of the answer that they become."""
    of_tile = tl.arange(0, BLOCK_N)
    if GATED:
        # Gate and up by turns of eight, as a thread holds an accumulator's rows.
        line = of_tile // 16 * 8 + of_tile % 8 + of_tile // 8 % 2 * OUTPUTS
        first = tl.program_id(0) * (BLOCK_N // 2)
        return first + line, first + tl.arange(0, BLOCK_N // 2)
    else:  # noqa: RET505 - what follows a return is compiled too
        line = tl.program_id(0) * BLOCK_N + of_tile
        return line, line


@triton.jit
def _with_minimums(
    acc, scales, minimums, x_sums, line, row, rows, x_rows, first, last,
    HEIGHT: tl.constexpr, STEPS: tl.constexpr, GROUPS: tl.constexpr, SAME: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """acc plus what steps `first` to `last` of INT4 still lack: minimums, less what was too much in the
    numbers, times sums of x."""
    for begin in tl.range(first // 16 * 16, last, 16, num_stages=1):
        step = begin + tl.arange(0, 16)
        inside = (step >= first) & (step < last)
        at_group = line[:, None] * GROUPS + step[None, :] // SAME
        known = (line < HEIGHT)[:, None] & ((step < last) | (STEPS % 16 == 0))[None, :]
        least = tl.load(minimums + at_group, mask=known, other=0.0).to(tl.float32) * SUM_OF
        excess = tl.load(scales + at_group, mask=known, other=0.0).to(tl.float32) * (-128.0 * SUM_OF)
        at_sums = x_sums + row[None, :] * STEPS + step[:, None]
        for part in tl.static_range(2):
            mask = (row < rows)[None, :] & inside[:, None]
            of_x = tl.load(at_sums + part * x_rows * STEPS, mask=mask, other=0.0)
            acc = tl.dot(least.to(wide), of_x, acc, input_precision="ieee")
            acc = tl.dot(excess.to(wide), of_x, acc, input_precision="ieee")
    return acc


@triton.jit
def product_of_tile(
    x, x_sums, numbers, scales, minimums, factor, line, row, rows, x_rows, first, last,
    INPUTS: tl.constexpr, HEIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, INT4: tl.constexpr, WORD: tl.constexpr, GROUP: tl.constexpr,
    LINES: tl.constexpr, FP8_X: tl.constexpr, wide: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Sums (BLOCK_N, BLOCK_M) over steps `first` to `last` of rows `line` of the weight (HEIGHT, INPUTS) and
    rows `row`, those below `rows`, of x (x_rows, INPUTS). `factor`: the scales of the first step's group."""
    TURNS: tl.constexpr = WORD * (1 + INT4) if WORD else 1
    WIDTH: tl.constexpr = INPUTS // TURNS
    STEPS: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    GROUPS: tl.constexpr = 1 if GROUP == 0 else (INPUTS + GROUP - 1) // GROUP
    SAME: tl.constexpr = 1 if GROUP == 0 else GROUP // BLOCK_K
    BLOCK_B: tl.constexpr = BLOCK_K // TURNS
    EVEN: tl.constexpr = (INPUTS % BLOCK_K == 0) and (HEIGHT % BLOCK_N == 0)
    WIDTH_X: tl.constexpr = STEPS * BLOCK_K if WORD else INPUTS
    live = row < rows
    place = tl.arange(0, BLOCK_B)
    at = numbers + line.to(tl.int64)[:, None] * WIDTH + place[None, :]
    at_x = x + row.to(tl.int64)[None, :] * WIDTH_X + place[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for begin in range(first, last, SPAN):
        for ahead in tl.static_range(SPAN):
            step = begin + ahead
            tile = _numbers(at, step * BLOCK_B, line, place, HEIGHT, WIDTH, EVEN)
            there = (step * BLOCK_K + place < INPUTS) | (WIDTH_X % BLOCK_K == 0)
            if GROUP:
                # Scales of the next step are on their way while this one is multiplied.
                next_factor = of_group(scales, line, (step + 1) // SAME, HEIGHT, GROUPS, LINES)
            product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if GROUP else acc
            for turn in tl.static_range(TURNS):
                some = tl.load(
                    at_x + step * BLOCK_K + turn * BLOCK_B, mask=live[None, :] & there[:, None], other=0.0
                )
                left = _operand(tile, turn, WORD, INT4, FP8_X, wide, ASM)
                product = tl.dot(left, some, product, input_precision="ieee")
            acc = acc + factor.to(tl.float32)[:, None] * product if GROUP else product
            if GROUP:
                factor = next_factor
    if INT4:
        acc = _with_minimums(
            acc, scales, minimums, x_sums, line, row, rows, x_rows, first, last,
            HEIGHT, STEPS, GROUPS, SAME, wide,
        )  # fmt: skip
    return acc


@triton.jit(do_not_specialize=["rows", "parts"])
def _tiles(
    x,
    x_scales,
    x_sums,
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
    SPANS: tl.constexpr,
    INT4: tl.constexpr,
    WORD: tl.constexpr,
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
    step, and a group is whole steps. WORD: the bytes that numbers come in, x is `arranged` for it; 0: x is as
    it was."""
    HEIGHT: tl.constexpr = 2 * OUTPUTS if GATED else OUTPUTS
    TURNS: tl.constexpr = WORD * (1 + INT4) if WORD else 1
    WIDTH: tl.constexpr = INPUTS // TURNS
    STEPS: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    GROUPS: tl.constexpr = 1 if GROUP == 0 else (INPUTS + GROUP - 1) // GROUP
    SAME: tl.constexpr = 1 if GROUP == 0 else GROUP // BLOCK_K
    BLOCK_B: tl.constexpr = BLOCK_K // TURNS
    # INT4 of a step are half a line of memory: two at a time fetch it whole.
    SPAN: tl.constexpr = SPANS if INT4 and STEPS % 2 == 0 else 1
    line, column = lines_of_tile(OUTPUTS, BLOCK_N, GATED)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    share = tl.cdiv(STEPS // SPAN, parts) * SPAN
    first = part * share
    last = min(first + share, STEPS)
    wide: tl.constexpr = out.dtype.element_ty
    factor = of_group(scales, line, first // SAME, HEIGHT, GROUPS, LINES) if GROUP else line
    lines = first * BLOCK_B + 128 * tl.arange(0, 4)[None, :]
    ask_for(numbers + tl.minimum(line, HEIGHT - 1).to(tl.int64)[:, None] * WIDTH + lines, PDL)
    if INT4:
        ask_for(minimums + tl.minimum(line, HEIGHT - 1) * GROUPS + first // SAME, PDL)
    await_inputs(PDL)
    release_next(PDL)
    acc = product_of_tile(
        x, x_sums, numbers, scales, minimums, factor, line, row, rows, rows, first, last,
        INPUTS, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_K, SPAN, INT4, WORD, GROUP, LINES, FP8_X, wide, ASM,
    )  # fmt: skip
    if not SPLIT:
        end_of_tile(
            acc, line, column, row, rows, x_scales, scales, bias, residual, out, scale,
            OUTPUTS, BLOCK_M, BLOCK_N, GROUP == 0, FP8_X, BIAS, RESIDUAL, GATED, SILU,
        )  # fmt: skip
    else:
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        tile_id = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        mine = sums + tile_id.to(tl.int64) * (parts * SIZE)
        mine += tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(mine + part * SIZE, acc)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile_id, 1, sem="acq_rel") == parts - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for each in range(parts):
                total += tl.load(mine + each * SIZE, cache_modifier=".cg")
            tl.store(arrived + tile_id, 0)
            end_of_tile(
                total, line, column, row, rows, x_scales, scales, bias, residual, out, scale,
                OUTPUTS, BLOCK_M, BLOCK_N, GROUP == 0, FP8_X, BIAS, RESIDUAL, GATED, SILU,
            )  # fmt: skip


MOST_TILES = 1 << 14
"""Tiles of a launch whose inputs are cut."""


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """How many parts of a tile have come: zeros between launches."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


def word_of(weight: QuantizedMatrix, block_k: int) -> int:
    """Bytes that numbers come in, for steps of `block_k` columns; 0: one by one, x need not be arranged."""
    int4 = weight.precision is Precision.INT4
    if weight.precision is Precision.FP8 or weight.numbers.shape[1] % 16:
        return 0
    # A product has 16 columns at least.
    return 2 if block_k >= 32 * (1 + int4) else 1 if int4 else 0


def tile_linear(
    x: Tensor,
    weight: QuantizedMatrix,
    bias: Tensor | None = None,
    *,
    x_scales: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    gated: Activation | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    tiles: Tiles | None = None,
) -> Tensor:
    """`few_rows.fused_linear` for any number of rows. x may be FP8 with `x_scales` (rows) FP32,
    when the weight is FP8 with a scale a row; the answer is then of the weight's dtype."""
    rows, inputs = x.shape
    outputs = weight.outputs // (2 if gated else 1)
    device = card(x.device)
    tiles = tiles or tiles_for(
        rows, weight, narrow=x_scales is not None, multiprocessors=device.multiprocessors
    )
    group, lines = group_of(weight)
    block_k = math.gcd(tiles.block_k, group)
    int4 = weight.precision is Precision.INT4
    word = word_of(weight, block_k)
    if word:
        x, x_sums = arranged(
            x, step=block_k, word=word, int4=int4, norm_weight=norm_weight, eps=eps, offset=offset
        )
    elif norm_weight is not None:
        x = norm.rms_norm(x, norm_weight, eps, offset=offset)
    columns, bands = triton.cdiv(weight.outputs, tiles.block_n), triton.cdiv(rows, tiles.block_m)
    assert tiles.parts == 1 or columns * bands <= MOST_TILES
    out = x.new_empty(rows, outputs, dtype=weight.dtype) if residual is None else residual
    size = tiles.parts * columns * bands * tiles.block_n * tiles.block_m if tiles.parts > 1 else 1
    _tiles[(columns, bands, tiles.parts)](
        x.contiguous(),
        out if x_scales is None else x_scales,
        x_sums if int4 else out,
        weight.numbers.view(torch.int16) if word == 2 else weight.numbers,
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
        SPANS=tiles.spans,
        INT4=int4,
        WORD=word,
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
