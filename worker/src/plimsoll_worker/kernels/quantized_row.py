"""A linear layer of quantized weights for one row: `few_rows._row` with numbers of fewer bits, and which
kernel takes it.

Half the bytes leave half the time, and the arithmetic becomes a bound too: numbers are widened by a few
operations (`widening`), scales are applied to sums over 16 bytes of a row, and what belongs to the inputs
(conversion, norm, sums) is done once for BLOCK_N rows of the weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.few_rows import finish
from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.matrix import FP8_BLOCK, QuantizedMatrix
from plimsoll_worker.kernels.nibbles_row import GROUP, row_of_nibbles
from plimsoll_worker.kernels.reference import Activation
from plimsoll_worker.kernels.row_reading import factors_of, inputs_of, words_of
from plimsoll_worker.kernels.widening import bytes_to_fp32, nibbles_to_fp32
from plimsoll_worker.launch.precision import Precision


@triton.jit
def _by_byte(x, CHUNKS: tl.constexpr):
    """(CHUNKS, 8) → four of (CHUNKS, 2): what meets the first, second, … byte of two words."""
    even, odd = tl.split(tl.reshape(x, [CHUNKS, 2, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first[None, :, :], second[None, :, :], third[None, :, :], fourth[None, :, :]


@triton.jit
def _bytes_times(words, x, FP8: tl.constexpr, CHUNKS: tl.constexpr, ASM: tl.constexpr):
    """Sums over two words, (BLOCK_N, CHUNKS, 2), times x (CHUNKS, 8)."""
    x0, x1, x2, x3 = _by_byte(x, CHUNKS)
    w0, w1, w2, w3 = bytes_to_fp32(words, FP8, ASM)
    return tl.sum(w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, axis=2)


@triton.jit
def _nibbles_times(words, low, high, CHUNKS: tl.constexpr, ASM: tl.constexpr):
    """Sums over two words, (BLOCK_N, CHUNKS, 2), times x (CHUNKS, 8) of their low and of their high halves;
    and what is too much in them (1, CHUNKS)."""
    l0, l1, l2, l3 = _by_byte(low, CHUNKS)
    h0, h1, h2, h3 = _by_byte(high, CHUNKS)
    a0, a1, a2, a3, b0, b1, b2, b3 = nibbles_to_fp32(words, ASM)
    lows = a0 * l0 + a1 * l1 + a2 * l2 + a3 * l3
    excess = 2048.0 * (l0 + l3 + h1) + 128.0 * ((l1 + l2) + (h0 + h2) + h3)
    return tl.sum(lows + b0 * h0 + b1 * h1 + b2 * h2 + b3 * h3, axis=2), tl.sum(excess, axis=2)


@triton.jit
def _row(
    x,
    norm_weight,
    words,
    scales,
    minimums,
    bias,
    residual,
    out,
    eps,
    offset,
    scale,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    INT4: tl.constexpr,
    FP8: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of x (INPUTS) → BLOCK_N of OUTPUTS columns; with GATED the weight has twice as many rows.
    Scales belong to GROUP words of LINES rows; GROUP 0: to a row."""
    WIDTH: tl.constexpr = INPUTS // (8 if INT4 else 4)
    STRIDE: tl.constexpr = 32 if INT4 else 16
    STEP: tl.constexpr = 4 * CHUNKS
    HEIGHT: tl.constexpr = 2 * OUTPUTS if GATED else OUTPUTS
    ROWS: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    LEAST: tl.constexpr = GROUP if INT4 else 0
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    line = column
    if GATED:
        # Rows of gate and up by turns, so that both end in the same thread.
        turn = tl.arange(0, ROWS)
        line = tl.program_id(0) * BLOCK_N + turn // 2 + (turn % 2) * OUTPUTS
    tile = words_of(words, line, 0, WIDTH, HEIGHT, ROWS, CHUNKS)
    factor = factors_of(scales, line, 0, WIDTH, HEIGHT, GROUP, LINES, CHUNKS)
    least = factors_of(minimums, line, 0, WIDTH, HEIGHT, LEAST, LINES, CHUNKS)
    await_inputs(PDL)
    release_next(PDL)
    squares = tl.zeros([CHUNKS, 8], tl.float32)
    acc = tl.zeros([ROWS, CHUNKS], tl.float32)
    for start in range(0, WIDTH, STEP):
        ahead = start + STEP
        later = words_of(words, line, ahead, WIDTH, HEIGHT, ROWS, CHUNKS)
        later_factor = factors_of(scales, line, ahead, WIDTH, HEIGHT, GROUP, LINES, CHUNKS)
        later_least = factors_of(minimums, line, ahead, WIDTH, HEIGHT, LEAST, LINES, CHUNKS)
        first = start * (STRIDE // 4)
        x0, raw0 = inputs_of(x, norm_weight, first, offset, INPUTS, CHUNKS, STRIDE, NORM)
        x1, raw1 = inputs_of(x, norm_weight, first + 8, offset, INPUTS, CHUNKS, STRIDE, NORM)
        if NORM:
            squares += raw0 * raw0 + raw1 * raw1
        pairs = tl.permute(tl.reshape(tile, [ROWS, CHUNKS, 2, 2]), [0, 1, 3, 2])
        left, right = tl.split(pairs)
        if INT4:
            x2, raw2 = inputs_of(x, norm_weight, first + 16, offset, INPUTS, CHUNKS, STRIDE, NORM)
            x3, raw3 = inputs_of(x, norm_weight, first + 24, offset, INPUTS, CHUNKS, STRIDE, NORM)
            if NORM:
                squares += raw2 * raw2 + raw3 * raw3
            product, excess = _nibbles_times(left, x0, x2, CHUNKS, ASM)
            other, more = _nibbles_times(right, x1, x3, CHUNKS, ASM)
            total = tl.sum((x0 + x1) + (x2 + x3), axis=1)
            acc += factor * ((product + other) - (excess + more)) + least * total[None, :]
        else:
            product = _bytes_times(left, x0, FP8, CHUNKS, ASM) + _bytes_times(right, x1, FP8, CHUNKS, ASM)
            acc += factor * product
        tile, factor, least = later, later_factor, later_least
    value = tl.sum(acc, axis=1)
    if GROUP == 0:
        value *= tl.load(scales + line, mask=line < HEIGHT, other=0.0).to(tl.float32)
    if NORM:
        value *= tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / INPUTS + eps)
    gate = value
    if GATED:
        gate, value = tl.split(tl.reshape(value, [BLOCK_N, 2]))
        column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    finish(
        value, gate, column, 0, bias, residual, out, scale, OUTPUTS, column < OUTPUTS,
        BIAS, RESIDUAL, GATED, SILU,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiles:
    """`block_n` outputs a program, `chunks` times 16 bytes of each row a step."""

    block_n: int
    chunks: int
    warps: int
    bands: int = 1
    """Turns of a program, of INT4 on the tensor cores where a step is a whole row."""


# The best on an H100 in chains of layers of Llama-3.1-8B's shape, 2026-11-23; of a family the first that
# divides the width (tests/gpu/quantized_on_gpu.py --sections tune).
BYTES = (Tiles(4, 128, 4), Tiles(4, 64, 2), Tiles(2, 32, 1))
BYTES_GATED = (Tiles(2, 64, 2), Tiles(2, 32, 1))
NIBBLES = (Tiles(8, 128, 4), Tiles(4, 64, 2), Tiles(8, 32, 1))
NIBBLES_GATED = (Tiles(4, 128, 4), Tiles(4, 32, 1))
# On the tensor cores, 3 % of a layer's time: rows whose x stays in registers, short ones and long ones.
SHORT, SHORT_GATED, LONG = Tiles(16, 128, 4), Tiles(4, 128, 4), Tiles(8, 512, 16)
LONG_FROM = 384
"""Chunks of a row from which it is long: fewer would leave warps without any."""
RESIDENT_WARPS = 16
"""Of a multiprocessor that takes its programs in bands."""


def tiles_for(weight: QuantizedMatrix, *, gated: bool, multiprocessors: int) -> Tiles:
    int4 = weight.precision is Precision.INT4
    width = weight.numbers.shape[1]
    if on_tensor_cores(weight):
        chunks = triton.cdiv(width, 16)
        if chunks <= SHORT.chunks:
            return _in_bands(SHORT_GATED if gated else SHORT, weight, gated, multiprocessors)
        if LONG_FROM < chunks <= LONG.chunks and not gated:
            return _in_bands(LONG, weight, gated, multiprocessors)
    family = (NIBBLES_GATED if int4 else BYTES_GATED) if gated else (NIBBLES if int4 else BYTES)
    return next((tiles for tiles in family if width % (16 * tiles.chunks) == 0), family[-1])


def _in_bands(tiles: Tiles, weight: QuantizedMatrix, gated: bool, multiprocessors: int) -> Tiles:
    """So many turns that all programs are at work at once, if they divide the answer's columns."""
    chunks = max(32, min(tiles.chunks, triton.next_power_of_2(triton.cdiv(weight.inputs, 32))))
    tiles = dataclasses.replace(tiles, chunks=chunks, warps=chunks // 32)
    columns, rest = divmod(weight.outputs // (2 if gated else 1), tiles.block_n)
    least = triton.cdiv(columns, multiprocessors * RESIDENT_WARPS // tiles.warps)
    divide = [bands for bands in range(least, 2 * least) if rest == 0 and columns % bands == 0]
    return dataclasses.replace(tiles, bands=divide[0] if divide else 1)


def on_tensor_cores(weight: QuantizedMatrix) -> bool:
    """Whether one row goes to `row_of_nibbles`."""
    return weight.precision is Precision.INT4 and weight.group is not None and weight.group % GROUP == 0


def group_of(weight: QuantizedMatrix) -> tuple[int, int]:
    """(columns, rows) that share a scale; columns 0: all of a row."""
    if weight.group is not None:
        return weight.group, 1
    return (FP8_BLOCK, FP8_BLOCK) if weight.block_scaled else (0, 1)


def row_linear(
    x: Tensor,
    weight: QuantizedMatrix,
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
    """`few_rows.fused_linear` for x (1, inputs)."""
    inputs, outputs = weight.inputs, weight.outputs // (2 if gated else 1)
    int4 = weight.precision is Precision.INT4
    group, lines = group_of(weight)
    out = x.new_empty(1, outputs) if residual is None else residual
    device = card(x.device)
    tiles = tiles or tiles_for(weight, gated=gated is not None, multiprocessors=device.multiprocessors)
    kernel: Any = _row
    kind: dict[str, Any] = {"INT4": int4, "FP8": weight.precision is Precision.FP8, "LINES": lines}
    if on_tensor_cores(weight):
        assert tiles.bands == 1 or (
            tiles.chunks * 32 >= inputs and outputs % (tiles.block_n * tiles.bands) == 0
        )
        kernel, kind = row_of_nibbles, {"BANDS": tiles.bands}
    kernel[(triton.cdiv(outputs, tiles.block_n * tiles.bands),)](
        x.contiguous(),
        x if norm_weight is None else norm_weight,
        weight.numbers.view(torch.int32),
        weight.scales,
        x if weight.minimums is None else weight.minimums,
        x if bias is None else bias,
        out,
        out,
        eps,
        offset,
        scale,
        INPUTS=inputs,
        OUTPUTS=outputs,
        BLOCK_N=tiles.block_n,
        CHUNKS=tiles.chunks,
        GROUP=group // (8 if int4 else 4),
        NORM=norm_weight is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated is not None,
        SILU=gated == "silu",
        ASM=device.compiles,
        PDL=device.dependent_launch,
        num_warps=tiles.warps,
        num_stages=1,
        **kind,
        **device.options,
    )
    return out
