"""Experts of a layer in fewer bits, each for its own rows: one launch for all of them.

Rows are sorted by expert, and a tile of rows belongs to one expert. Which one, and which rows, each program
works out from where the experts' rows end, so that nothing is read back from the device and the grid follows
from the number of rows alone: as many tiles as there could be at most; programs of tiles that there are not
have nothing to do. A list of tiles made by a kernel in front was the alternative, at a launch more a product.

The tiles themselves are those of `quantized_tiles`, whose inputs are not cut: experts are many.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.arranging import arranged
from plimsoll_worker.kernels.fp8_rows import fp8_rows
from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized import FP8_ROWS, takes_fp8
from plimsoll_worker.kernels.quantized_row import group_of
from plimsoll_worker.kernels.quantized_tiles import (
    end_of_tile,
    lines_of_tile,
    of_group,
    product_of_tile,
    word_of,
)
from plimsoll_worker.kernels.quantized_tiling import Tiles, tiles_for
from plimsoll_worker.kernels.reference import Activation
from plimsoll_worker.launch.precision import Precision


@triton.jit(do_not_specialize=["rows"])
def _expert_tiles(
    x,
    x_scales,
    x_sums,
    numbers,
    scales,
    minimums,
    last_rows,
    out,
    rows,
    EXPERTS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPANS: tl.constexpr,
    INT4: tl.constexpr,
    WORD: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    FP8_X: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """At most BLOCK_M rows of x (rows, INPUTS), those of one expert, → BLOCK_N rows of its weight, as
    `quantized_tiles` has it. The experts' numbers, scales and minimums lie one behind the other."""
    HEIGHT: tl.constexpr = 2 * OUTPUTS if GATED else OUTPUTS
    WIDTH: tl.constexpr = INPUTS // (WORD * (1 + INT4)) if WORD else INPUTS
    STEPS: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    GROUPS: tl.constexpr = 1 if GROUP == 0 else (INPUTS + GROUP - 1) // GROUP
    SPAN: tl.constexpr = SPANS if INT4 and STEPS % 2 == 0 else 1
    line, column = lines_of_tile(OUTPUTS, BLOCK_N, GATED)
    each = tl.arange(0, BLOCK_E)
    await_inputs(PDL)
    release_next(PDL)
    # Experts that there are not begin and end where the last one ends.
    end = tl.load(last_rows + each, mask=each < EXPERTS, other=rows)
    begin = tl.load(last_rows + each - 1, mask=(each > 0) & (each < EXPERTS), other=0)
    begin = tl.where(each < EXPERTS, begin, rows)
    tiles = (end - begin + (BLOCK_M - 1)) // BLOCK_M
    before = tl.cumsum(tiles, 0)
    tile = tl.program_id(1)
    expert = tl.sum((before <= tile).to(tl.int32), axis=0)
    if expert >= EXPERTS:
        return
    mine = each == expert
    skipped = tile - tl.sum(tl.where(mine, before - tiles, 0), axis=0)
    first_row = tl.sum(tl.where(mine, begin, 0), axis=0) + skipped * BLOCK_M
    last_row = tl.sum(tl.where(mine, end, 0), axis=0)
    row = first_row + tl.arange(0, BLOCK_M)
    wide: tl.constexpr = out.dtype.element_ty
    numbers += expert.to(tl.int64) * (HEIGHT * WIDTH)
    scales += expert * (HEIGHT // LINES * GROUPS)
    minimums += expert * (HEIGHT * GROUPS)
    factor = of_group(scales, line, 0, HEIGHT, GROUPS, LINES) if GROUP else line
    acc = product_of_tile(
        x, x_sums, numbers, scales, minimums, factor, line, row, last_row, rows, 0, STEPS,
        INPUTS, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_K, SPAN, INT4, WORD, GROUP, LINES, FP8_X, wide, ASM,
    )  # fmt: skip
    end_of_tile(
        acc, line, column, row, last_row, x_scales, scales, out, out, out, 1.0,
        OUTPUTS, BLOCK_M, BLOCK_N, GROUP == 0, FP8_X, False, False, GATED, SILU,
    )  # fmt: skip


def grouped_linear(
    x: Tensor,
    weight: QuantizedMatrix,
    last_rows: Tensor,
    *,
    places: Tensor | None = None,
    gated: Activation | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Rows of x, or its rows `places`, times their experts' matrices, as `ops.grouped_linear`."""
    experts, inputs = len(last_rows), x.shape[1]
    rows = len(x if places is None else places)
    height = weight.outputs // experts
    outputs = height // (2 if gated else 1)
    device = card(x.device)
    # As if all experts had as many rows.
    share = triton.cdiv(rows, experts)
    narrow = share >= FP8_ROWS and takes_fp8(weight, x)
    tiles = tiles or tiles_for(
        share,
        replace(weight, numbers=weight.numbers[:height]),
        narrow=narrow,
        multiprocessors=device.multiprocessors,
    )
    group, lines = group_of(weight)
    assert height % lines == 0, f"experts of {height} rows begin inside a block of {lines}"
    int4 = weight.precision is Precision.INT4
    block_k = math.gcd(tiles.block_k, group)
    word = word_of(weight, block_k)
    dtype = x.dtype
    x_scales = x_sums = None
    if narrow:
        x, x_scales = fp8_rows(x)
    if word:
        x, x_sums = arranged(x, step=block_k, word=word, int4=int4, places=places)
    elif places is not None:
        x, x_scales = x[places], None if x_scales is None else x_scales[places]
    out = x.new_empty(rows, outputs, dtype=dtype)
    # Every expert that has rows begins a tile of its own.
    begun = min(experts, rows)
    grid = (triton.cdiv(height, tiles.block_n), begun + (rows - begun) // tiles.block_m)
    _expert_tiles[grid](
        x.contiguous(),
        out if x_scales is None else x_scales,
        x_sums if int4 else out,
        weight.numbers.view(torch.int16) if word == 2 else weight.numbers,
        weight.scales,
        out if weight.minimums is None else weight.minimums,
        last_rows,
        out,
        rows,
        EXPERTS=experts,
        INPUTS=inputs,
        OUTPUTS=outputs,
        BLOCK_E=triton.next_power_of_2(experts),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=block_k,
        SPANS=tiles.spans,
        INT4=int4,
        WORD=word,
        GROUP=group,
        LINES=lines,
        FP8_X=x_scales is not None,
        GATED=gated is not None,
        SILU=gated == "silu",
        ASM=device.compiles,
        PDL=device.dependent_launch,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **device.options,
    )
    return out
