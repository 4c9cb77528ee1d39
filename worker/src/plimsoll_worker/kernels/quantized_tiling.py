"""How the kernel for several rows cuts a weight, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.launch.precision import Precision


@dataclass(frozen=True, slots=True)
class Tiles:
    """`block_n` rows of the weight and `block_m` rows of x a program, `block_k` columns a step, the columns
    among `parts` programs; `spans` steps of INT4 are read at once."""

    block_n: int
    block_m: int
    block_k: int
    parts: int
    warps: int
    stages: int
    spans: int = 1


# (block_n, block_k, warps, stages, spans), the best or within 3 % of a layer's time on an H100 in chains of
# layers of Llama-3.1-8B's shape, 2026-11-23 (tests/gpu/quantized_on_gpu.py --sections tune).
FEW = (32, 128, 2, 5, 1)
FEW_TALL = (64, 128, 4, 4, 1)
FEW_INT4 = (64, 128, 4, 3, 2)
FEW_INT4_TALL = (128, 128, 4, 3, 2)
FEW_FP8 = (64, 256, 4, 4, 1)
SOME = (128, 128, 8, 3, 1)
SOME_FP8 = (64, 128, 4, 4, 1)
MORE = (64, 128, 4, 3, 1)
MORE_DENSE = (128, 128, 8, 3, 1)
MANY = (128, 64, 8, 4, 1)
TALL = 16384
"""Rows of a weight from which it is tall."""
LONG = 8192
"""Inputs from which they are long: worth more parts."""
MOST_PARTS = 8


def tiles_for(rows: int, weight: QuantizedMatrix, *, narrow: bool, multiprocessors: int) -> Tiles:
    """Tiles for x (rows, inputs); narrow: x is FP8. The inputs are cut so that there are programs for about
    eight warps a multiprocessor, or sixteen."""
    int4, fp8 = weight.precision is Precision.INT4, weight.precision is Precision.FP8
    tall = weight.outputs > TALL
    most, wanted = 256, 8
    if rows <= 16:
        tiles = (FEW_INT4_TALL if int4 else FEW_TALL) if tall else FEW_INT4 if int4 else FEW
        tiles = FEW_FP8 if narrow else tiles
    elif rows <= 64:
        tiles = SOME_FP8 if fp8 else SOME
    elif rows <= 128:
        tiles = MORE_DENSE if int4 or narrow else MORE
    elif int4 or (rows <= 256 and not fp8 and not tall):
        tiles, most = MORE_DENSE, 128
    else:
        tiles = MANY
    if int4 and rows <= 64 and weight.inputs > LONG:
        wanted = 16
    block_n, block_k, warps, stages, spans = tiles
    band = max(16, min(most, triton.next_power_of_2(rows)))
    programs = triton.cdiv(weight.outputs, block_n) * triton.cdiv(rows, band)
    parts = max(1, min(MOST_PARTS, wanted * multiprocessors // warps // programs))
    return Tiles(block_n, band, block_k, parts, warps, stages, spans)
