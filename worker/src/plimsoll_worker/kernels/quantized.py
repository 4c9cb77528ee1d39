"""Linear layers with weights of fewer bits on a GPU: which kernel takes how many rows.

| rows | INT8, INT4, block-scaled FP8 | FP8 with a scale a row |
| --- | --- | --- |
| 1 | `quantized_row`; INT4 in groups of 128 `nibbles_row` | the same |
| to WIDE_ROWS | `quantized_tiles`, x of integers `arranged` | x in FP8 from FP8_ROWS on (`fp8_rows`) |
| more | `dequantizing` and cuBLAS | x in FP8, cuBLAS |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plimsoll_worker.kernels import norm
from plimsoll_worker.kernels.dequantizing import wide_linear
from plimsoll_worker.kernels.fp8_rows import fp8_rows
from plimsoll_worker.kernels.launching import card
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized_row import row_linear
from plimsoll_worker.kernels.quantized_tiles import tile_linear
from plimsoll_worker.kernels.reference import Activation
from plimsoll_worker.launch.precision import Precision

FP8_ROWS = 16
"""Rows from which x is FP8 where the weight is: 11 % of a layer's time at 16 rows, 17 % at 128."""
WIDE_ROWS = 1024
WIDE_ROWS_INT4 = 384
WIDE_ROWS_FP8 = 384
"""Rows from which weights are widened in memory, or left to cuBLAS in FP8. H100, Llama-3.1-8B's shape,
2026-11-23 (tests/gpu/quantized_on_gpu.py): INT8 tiles take 31 ms for a step of 512 rows, widening 44."""


def quantized_linear(
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
) -> Tensor:
    """As `few_rows.fused_linear`, for any number of rows."""
    rows = x.shape[0]
    epilogue: dict[str, Any] = {"gated": gated, "residual": residual, "scale": scale}
    narrow = rows >= FP8_ROWS and takes_fp8(weight, x)
    limit = WIDE_ROWS_FP8 if narrow else WIDE_ROWS_INT4 if weight.group is not None else WIDE_ROWS
    few = rows < limit and fits(weight, gated=gated is not None)
    if few and rows == 1:
        return row_linear(x, weight, bias, norm_weight=norm_weight, eps=eps, offset=offset, **epilogue)
    if narrow:
        numbers, scales = fp8_rows(x, norm_weight=norm_weight, eps=eps, offset=offset)
        if few:
            return tile_linear(numbers, weight, bias, x_scales=scales, **epilogue)
        out = torch._scaled_mm(  # noqa: SLF001 - the form that takes a scale a row
            numbers,
            weight.numbers.t(),
            scale_a=scales,
            scale_b=weight.scales[None, :],
            bias=bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        if gated is not None:
            return norm.gated_activation(out, gated)
        return out if residual is None else residual.add_(out, alpha=scale)
    if few:
        return tile_linear(x, weight, bias, norm_weight=norm_weight, eps=eps, offset=offset, **epilogue)
    if norm_weight is not None:
        x = norm.rms_norm(x, norm_weight, eps, offset=offset)
    out = wide_linear(x, weight, bias, residual, scale)
    return out if gated is None else norm.gated_activation(out, gated)


def fits(weight: QuantizedMatrix, *, gated: bool) -> bool:
    """Whether the kernels can cut it: rows of whole 16 bytes, gate and up of whole eights."""
    width = weight.numbers.shape[1]
    return width % 16 == 0 and weight.outputs % (16 if gated else 1) == 0


def takes_fp8(weight: QuantizedMatrix, x: Tensor) -> bool:
    """Whether x is multiplied in FP8: tensor cores since 8.9 do, in sixteens, scaled by whole rows."""
    if weight.precision is not Precision.FP8 or weight.block_scaled or x.dtype != torch.bfloat16:
        return False
    device = card(x.device)
    sixteens = weight.inputs % 16 == 0 and weight.outputs % 16 == 0
    return sixteens and (device.capability >= (8, 9) or not device.compiles)
