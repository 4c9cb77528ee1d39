"""RMS norm (with the residual's addition) and the gated activation: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.reference import Activation

ACTIVATION_BLOCK = 1024


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    normed,
    total,
    eps,
    offset,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + offset
    await_inputs(PDL)
    release_next(PDL)
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    tl.store(normed + row + column, (value * scale * factor).to(normed.dtype.element_ty), mask=inside)


def _launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float
) -> list[Tensor]:
    x = x.contiguous()
    width = x.shape[-1]
    normed = torch.empty_like(x)
    total = normed if residual is None else torch.empty_like(x)
    device = card(x.device)
    _rms_norm[(x.numel() // width,)](
        x,
        x if residual is None else residual.contiguous(),
        weight,
        normed,
        total,
        eps,
        offset,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=residual is not None,
        PDL=device.dependent_launch,
        num_warps=4 if width <= 2048 else 8,
        **device.options,
    )
    return [normed, total]


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    return _launch_norm(x, None, weight, eps, offset)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    normed, total = _launch_norm(x, residual, weight, eps, offset)
    return normed, total


@triton.jit
def activated(gate, SILU: tl.constexpr):
    """SiLU, or GELU by tanh(z) = 2 sigmoid(2 z) - 1, of FP32."""
    if SILU:
        return gate * tl.sigmoid(gate)
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def _gated_activation(
    gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    await_inputs(PDL)
    release_next(PDL)
    source = gate_up + row * 2 * WIDTH + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (activated(gate, SILU) * up).to(out.dtype.element_ty), mask=inside)


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    device = card(gate_up.device)
    _gated_activation[(rows, triton.cdiv(width, ACTIVATION_BLOCK))](
        gate_up.contiguous(),
        out,
        WIDTH=width,
        BLOCK=ACTIVATION_BLOCK,
        SILU=kind == "silu",
        PDL=device.dependent_launch,
        num_warps=4,
        **device.options,
    )
    return out
