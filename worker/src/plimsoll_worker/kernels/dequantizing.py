"""A quantized matrix made wide again, a piece at a time, for so many rows that cuBLAS is faster than what
widens in registers: reading the weights is then a small part.

The piece lies in scratch memory no larger than the L2 cache, so that the multiplication finds it there; a
wide copy of the whole matrix was the alternative, at hundreds of megabytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized_row import group_of
from plimsoll_worker.launch.precision import Precision

PIECE = 1 << 24
"""Elements of the scratch: 32 MiB in 16 bit."""
BLOCK = 512


@triton.jit
def _dequantize(
    numbers,
    scales,
    minimums,
    out,
    first,
    INPUTS: tl.constexpr,
    INT4: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Row first + program_id(0), BLOCK of its bytes → a row of out."""
    WIDTH: tl.constexpr = INPUTS // 2 if INT4 else INPUTS
    row = first + tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < WIDTH
    tile = tl.load(numbers + row.to(tl.int64) * WIDTH + place, mask=inside, other=0.0)
    k = place // 16 * 32 + place % 16 if INT4 else place
    at = (row // LINES) * ((INPUTS + GROUP - 1) // GROUP) + k // GROUP if GROUP else row + 0 * place
    factor = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    to = out + tl.program_id(0).to(tl.int64) * INPUTS + k
    kept: tl.constexpr = out.dtype.element_ty
    await_inputs(PDL)
    release_next(PDL)
    if INT4:
        least = tl.load(minimums + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(to, ((tile & 15).to(tl.float32) * factor + least).to(kept), mask=inside)
        tl.store(to + 16, ((tile >> 4).to(tl.float32) * factor + least).to(kept), mask=inside)
    else:
        tl.store(to, (tile.to(tl.float32) * factor).to(kept), mask=inside)


def wide_piece(weight: QuantizedMatrix, first: int, scratch: Tensor) -> None:
    """The rows of the weight from `first` into `scratch` (rows, inputs)."""
    int4 = weight.precision is Precision.INT4
    group, lines = group_of(weight)
    device = card(scratch.device)
    _dequantize[(scratch.shape[0], triton.cdiv(weight.numbers.shape[1], BLOCK))](
        weight.numbers,
        weight.scales,
        scratch if weight.minimums is None else weight.minimums,
        scratch,
        first,
        INPUTS=weight.inputs,
        INT4=int4,
        GROUP=group,
        LINES=lines,
        BLOCK=BLOCK,
        PDL=device.dependent_launch,
        num_warps=4,
        **device.options,
    )


def wide_linear(
    x: Tensor, weight: QuantizedMatrix, bias: Tensor | None, residual: Tensor | None, scale: float
) -> Tensor:
    """residual + scale * (x @ weightᵀ + bias), the residual's memory used, or without."""
    outputs, inputs = weight.shape
    out = x.new_empty(x.shape[0], outputs) if residual is None else residual
    height = max(1, min(outputs, PIECE // inputs // 128 * 128))
    scratch = x.new_empty(height, inputs)
    for first in range(0, outputs, height):
        rows = slice(first, min(first + height, outputs))
        piece = scratch[: rows.stop - first]
        wide_piece(weight, first, piece)
        if residual is not None:
            out[:, rows].addmm_(x, piece.t(), alpha=scale)
        elif bias is not None:
            torch.addmm(bias[rows], x, piece.t(), out=out[:, rows])
        else:
            torch.mm(x, piece.t(), out=out[:, rows])
    if residual is not None and bias is not None:
        out.add_(bias, alpha=scale)
    return out
