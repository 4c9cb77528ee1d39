"""Queries and keys normed and rotated, keys and values written to the cache, in one kernel.

Separate kernels would read and write the same few kilobytes a token four times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.kernels.launching import await_inputs, card, release_next

HEADS_A_PROGRAM = 8


@triton.jit
def _rope_angles(positions, inverse, out, scale, HALF: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    inside = pair < HALF
    await_inputs(PDL)
    release_next(PDL)
    turn = tl.load(positions + token).to(tl.float32) * tl.load(inverse + pair, mask=inside, other=0.0)
    tl.store(out + token * 2 * HALF + pair, tl.cos(turn) * scale, mask=inside)
    tl.store(out + token * 2 * HALF + HALF + pair, tl.sin(turn) * scale, mask=inside)


def rope_angles(positions: Tensor, inverse: Tensor, *, scale: float = 1.0) -> Tensor:
    tokens, half = positions.shape[0], inverse.shape[0]
    out = torch.empty((tokens, 2, half), dtype=torch.float32, device=positions.device)
    device = card(positions.device)
    _rope_angles[(tokens,)](
        positions,
        inverse,
        out,
        scale,
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        PDL=device.dependent_launch,
        num_warps=1,
        **device.options,
    )
    return out


@triton.jit
def turned_heads(
    row,
    head,
    live,
    cos_sin,
    weight,
    eps,
    offset,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
):
    """Heads `head` (H) of the token at `row`, normed and rotated: (H, BLOCK_D) FP32, 0 where not `live` (H).

    Each element is loaded beside the one it is rotated with, HALF away; the second load hits the L1 cache.
    """
    place = tl.arange(0, BLOCK_D)
    partner = tl.where(place < HALF, place + HALF, tl.where(place < 2 * HALF, place - HALF, place))
    inside = place < HEAD_DIM
    mask = live[:, None] & inside[None, :]
    value = tl.load(row + head[:, None] * HEAD_DIM + place[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(row + head[:, None] * HEAD_DIM + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(value * value, axis=1) / HEAD_DIM + eps)[:, None]
        value *= scale * (tl.load(weight + place, mask=inside, other=0.0).to(tl.float32) + offset)[None, :]
        other *= scale * (tl.load(weight + partner, mask=inside, other=0.0).to(tl.float32) + offset)[None, :]
    rotary = place < 2 * HALF
    pair = tl.where(place < HALF, place, place - HALF)
    cosine = tl.load(cos_sin + pair, mask=rotary, other=1.0)
    sine = tl.load(cos_sin + HALF + pair, mask=rotary, other=0.0)
    sine = tl.where(place < HALF, -sine, sine)
    return value * cosine[None, :] + other * sine[None, :]


@triton.jit
def stored(value, cache):
    """`value` as the cache holds it: FP8 saturates."""
    if cache.dtype.element_ty == tl.float8e4nv:
        value = tl.minimum(tl.maximum(value, -448.0), 448.0)
    return value.to(cache.dtype.element_ty)


@triton.jit
def _rope_store(
    qkv,
    cos_sin,
    q_norm,
    k_norm,
    slots,
    queries,
    k_cache,
    v_cache,
    eps,
    offset,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs of a token: those of the query heads, of the key heads, of the value heads."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    Q_PARTS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    KV_PARTS: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    place = tl.arange(0, BLOCK_D)
    inside = (place < HEAD_DIM)[None, :]
    await_inputs(PDL)
    release_next(PDL)
    row = qkv + token * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    angles = cos_sin + token * 2 * HALF
    slot = tl.load(slots + token)
    if part < Q_PARTS:
        head = part * BLOCK_H + tl.arange(0, BLOCK_H)
        live = head < HEADS
        value = turned_heads(row, head, live, angles, q_norm, eps, offset, HEAD_DIM, HALF, BLOCK_D, Q_NORM)
        target = queries + (token * HEADS + head[:, None]) * HEAD_DIM + place[None, :]
        tl.store(target, value.to(queries.dtype.element_ty), mask=live[:, None] & inside)
    elif slot >= 0:
        if part < Q_PARTS + KV_PARTS:
            head = (part - Q_PARTS) * BLOCK_H + tl.arange(0, BLOCK_H)
            live = head < KV_HEADS
            value = turned_heads(
                row, HEADS + head, live, angles, k_norm, eps, offset, HEAD_DIM, HALF, BLOCK_D, K_NORM
            )
            target = k_cache + (slot * KV_HEADS + head[:, None]) * HEAD_DIM + place[None, :]
            tl.store(target, stored(value, k_cache), mask=live[:, None] & inside)
        else:
            head = (part - Q_PARTS - KV_PARTS) * BLOCK_H + tl.arange(0, BLOCK_H)
            written = (head < KV_HEADS)[:, None] & inside
            source = row + (HEADS + KV_HEADS + head[:, None]) * HEAD_DIM + place[None, :]
            value = tl.load(source, mask=written, other=0.0).to(tl.float32)
            target = v_cache + (slot * KV_HEADS + head[:, None]) * HEAD_DIM + place[None, :]
            tl.store(target, stored(value, v_cache), mask=written)


def rope_store(
    qkv: Tensor,
    batch: AttentionBatch,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> Tensor:
    tokens = qkv.shape[0]
    queries = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    parts = triton.cdiv(heads, HEADS_A_PROGRAM) + 2 * triton.cdiv(kv_heads, HEADS_A_PROGRAM)
    device = card(qkv.device)
    _rope_store[(tokens, parts)](
        qkv,
        cos_sin,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        batch.slots,
        queries,
        k_cache,
        v_cache,
        eps,
        norm_offset,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        HALF=cos_sin.shape[-1],
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_H=HEADS_A_PROGRAM,
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        PDL=device.dependent_launch,
        num_warps=4,
        **device.options,
    )
    return queries
