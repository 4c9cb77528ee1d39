"""Activations in FP8, a scale a row: what a multiplication of FP8 with FP8 takes.

The largest of a row decides its scale, so the row is read once and kept in registers; the norm in front
happens on the way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.reference import FP8_MAX


@triton.jit
def _fp8_rows(
    x,
    norm_weight,
    out,
    scales,
    eps,
    offset,
    largest,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    await_inputs(PDL)
    release_next(PDL)
    value = tl.load(x + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        factor = tl.load(norm_weight + column, mask=inside, other=0.0).to(tl.float32) + offset
        value *= tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps) * factor
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / largest, 1e-12)
    tl.store(scales + row, scale)
    tl.store(out + row * WIDTH + column, (value / scale).to(out.dtype.element_ty), mask=inside)


def fp8_rows(
    x: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x (rows, width), or its norm → (float8_e4m3fn (rows, width), scales (rows, 1) FP32)."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    device = card(x.device)
    _fp8_rows[(rows,)](
        x.contiguous(),
        x if norm_weight is None else norm_weight,
        out,
        scales,
        eps,
        offset,
        FP8_MAX,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        NORM=norm_weight is not None,
        PDL=device.dependent_launch,
        num_warps=8 if width <= 8192 else 16,
        **device.options,
    )
    return out, scales
