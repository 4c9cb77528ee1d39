"""Attention of one new token a sequence over the paged cache: split-KV ("flash decoding", Dao et al. 2023).

A program takes one sequence, one key head with all query heads that share it, and one part of the context;
a second kernel weighs the parts together. Few sequences with long contexts would otherwise leave most of the
card idle. The norms, the rotation and the cache write of the new token happen in the same kernel when the
step's qkv is given: the new key and value never come back from memory.

How many parts a context is cut into follows from its length on the device, so a captured graph serves any.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.kernels.launching import await_inputs, card, release_next
from plimsoll_worker.kernels.rope import stored, turned_heads

LOG2E = math.log2(math.e)
# Best of those tried on an H100, 2026-11-23 (tests/gpu/kernels_on_gpu.py): 1 and 8 sequences, 32 and 128 of
# 544 tokens, 16 of 4096, 1 of 8192; 32 query heads of 128, 8 key heads.
MAX_SPLITS = 32
WAVES = 2
"""Programs a multiprocessor finds when splitting can provide them."""
BLOCK_N = 64
"""Keys of a tile."""
MANY_PROGRAMS = 4
"""Programs a multiprocessor from which half a tile is better, but for pages that hold whole ones and for keys
of 8 bits: 256 sequences of 1024 tokens, Llama-3.1-8B, take 14.8 ms a step with whole tiles, 15.9 with half
ones."""
WARPS, STAGES = 4, 3
PAIR_SCALE = 256.0
"""Of FP8 numbers whose bits are put into FP16's places."""


@triton.jit
def softcapped(score, SOFTCAP: tl.constexpr, LOG2: tl.constexpr):
    """softcap * tanh(score / softcap) in units of log2(e), by tanh(z) = 2 sigmoid(2 z) - 1."""
    if SOFTCAP > 0:
        return (2.0 * tl.sigmoid(score * (2.0 / SOFTCAP)) - 1.0) * (SOFTCAP * LOG2)
    return score * LOG2


@triton.jit
def cache_slots(table, position, start, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, valid):
    """Cache slots (BLOCK_N) int64 of positions start, start + 1, …: one look-up where a page holds a tile."""
    if PAGE % BLOCK_N == 0:
        return tl.load(table + start // PAGE).to(tl.int64) * PAGE + position % PAGE
    return tl.load(table + position // PAGE, mask=valid, other=0).to(tl.int64) * PAGE + position % PAGE


@triton.jit
def computed_in(cache, q):
    """The type queries and what is read from the cache are multiplied in. FP8 numbers become FP16 in one
    instruction for two of them, BF16 takes six, and both hold them exactly."""
    if cache.dtype.element_ty == tl.float8e4nv and q.dtype.primitive_bitwidth == 16:
        q = q.to(tl.float16)
    return q


@triton.jit
def halves_of_pairs(pair):
    """The FP8 numbers at even and at odd places of int16 pairs, divided by PAIR_SCALE, in FP16: the exponent
    has one bit more there, and its bias is 8 more."""
    even = ((pair << 8) & -0x8000) | ((pair << 7) & 0x3F80)
    odd = (pair & -0x8000) | ((pair >> 1) & 0x3F80)
    return even.to(tl.int16).to(tl.float16, bitcast=True), odd.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _parts(context, ROPE: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first visible position, end of what is read from the cache, where parts start, length of a part,
    number of parts)."""
    first = tl.maximum(context - WINDOW, 0) if WINDOW > 0 else context * 0
    end = tl.maximum(context - 1, 0) if ROPE else context
    base = first // BLOCK_N * BLOCK_N
    length = tl.maximum(tl.cdiv(tl.cdiv(end - base, SPLITS), BLOCK_N) * BLOCK_N, BLOCK_N)
    return first, end, base, length, tl.maximum(tl.cdiv(end - base, length), 1)


@triton.jit(do_not_specialize=["table_width"])
def _decode(
    source,
    cos_sin,
    q_norm,
    k_norm,
    k_cache,
    v_cache,
    block_tables,
    context_lens,
    slots,
    out,
    parts_out,
    parts_log,
    table_width,
    scale,
    eps,
    offset,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    ROPE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    LOG2: tl.constexpr,
    PAIR_SCALE: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUP: tl.constexpr = HEADS // KV_HEADS
    # Tensor cores want two tokens' numbers side by side, which is done for 16 bits in one instruction for 64
    # of them and for 8 bits one by one. So FP8 values are read as pairs, the even places and the odd ones.
    PAIRS: tl.constexpr = v_cache.dtype.element_ty == tl.float8e4nv
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    release_next(PDL)
    context = tl.load(context_lens + sequence)
    first, last, base, length, parts = _parts(context, ROPE, WINDOW, SPLITS, BLOCK_N)
    begin = base + split * length
    end = tl.minimum(begin + length, last)
    table = block_tables + sequence * table_width
    await_inputs(PDL)
    if split >= parts:
        return
    member = tl.arange(0, BLOCK_G)
    live = member < GROUP
    head = kv_head * GROUP + member
    place = tl.arange(0, BLOCK_D)
    inside = place < HEAD_DIM
    if ROPE:
        row = source + sequence * (HEADS + 2 * KV_HEADS) * HEAD_DIM
        angles = cos_sin + sequence * 2 * HALF
        q = turned_heads(row, head, live, angles, q_norm, eps, offset, HEAD_DIM, HALF, BLOCK_D, Q_NORM)
        q = q.to(source.dtype.element_ty)
    else:
        row = source + sequence * HEADS * HEAD_DIM
        mask = live[:, None] & inside[None, :]
        q = tl.load(row + head[:, None] * HEAD_DIM + place[None, :], mask=mask, other=0.0)
    q = computed_in(k_cache, q)

    top = tl.full([BLOCK_G], -1e30, tl.float32)
    mass = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D // 2 if PAIRS else BLOCK_D], tl.float32)
    acc_odd = acc
    for start in range(begin, end, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        valid = position < end
        slot = cache_slots(table, position, start, PAGE, BLOCK_N, valid)
        line = (slot * KV_HEADS + kv_head) * HEAD_DIM
        read = valid[:, None] & inside[None, :]
        key = tl.load(k_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
        score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        score = softcapped(score, SOFTCAP, LOG2)
        if WINDOW > 0:
            valid = valid & (position >= first)
        score = tl.where(valid[None, :], score, -1e30)
        higher = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.where(valid[None, :], tl.exp2(score - higher[:, None]), 0.0)
        fade = tl.exp2(top - higher)
        mass = mass * fade + tl.sum(weight, axis=1)
        weight = weight.to(q.dtype)
        acc = acc * fade[:, None]
        if PAIRS:
            half = tl.arange(0, BLOCK_D // 2)
            pairs = v_cache.to(tl.pointer_type(tl.int16)) + (line // 2)[:, None] + half[None, :]
            pair = tl.load(pairs, mask=valid[:, None] & (half < HEAD_DIM // 2)[None, :], other=0)
            even, odd = halves_of_pairs(pair)
            acc = tl.dot(weight, even.to(q.dtype), acc, input_precision="ieee")
            acc_odd = tl.dot(weight, odd.to(q.dtype), acc_odd * fade[:, None], input_precision="ieee")
        else:
            value = tl.load(v_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
            acc = tl.dot(weight, value, acc, input_precision="ieee")
        top = higher
    if PAIRS:
        acc = tl.join(acc, acc_odd).reshape(BLOCK_G, BLOCK_D) * PAIR_SCALE

    if ROPE and split == parts - 1 and context > 0:
        one = tl.arange(0, 1)
        slot = tl.load(slots + sequence)
        key = turned_heads(
            row, HEADS + kv_head + one, one == 0, angles, k_norm, eps, offset, HEAD_DIM, HALF, BLOCK_D, K_NORM
        )
        source_v = row + (HEADS + KV_HEADS + kv_head) * HEAD_DIM + place
        value = tl.load(source_v, mask=inside, other=0.0).to(tl.float32)
        key_stored = stored(tl.sum(key, axis=0), k_cache)
        value_stored = stored(value, v_cache)
        line = (slot * KV_HEADS + kv_head) * HEAD_DIM + place
        tl.store(k_cache + line, key_stored, mask=inside & (slot >= 0))
        tl.store(v_cache + line, value_stored, mask=inside & (slot >= 0))
        score = tl.sum(q.to(tl.float32) * key_stored.to(tl.float32)[None, :], axis=1) * scale
        score = softcapped(score, SOFTCAP, LOG2)
        higher = tl.maximum(top, score)
        weight = tl.exp2(score - higher)
        fade = tl.exp2(top - higher)
        mass = mass * fade + weight
        acc = acc * fade[:, None] + weight[:, None] * value_stored.to(tl.float32)[None, :]
        top = higher

    acc = acc / tl.maximum(mass, 1e-30)[:, None]
    mask = live[:, None] & inside[None, :]
    line = sequence * HEADS + head
    if SPLITS == 1:
        tl.store(out + line[:, None] * HEAD_DIM + place[None, :], acc.to(out.dtype.element_ty), mask=mask)
    else:
        line = line * SPLITS + split
        tl.store(parts_out + line[:, None] * HEAD_DIM + place[None, :], acc, mask=mask)
        tl.store(parts_log + line, top + tl.log2(tl.maximum(mass, 1e-30)), mask=live)


@triton.jit
def _weigh_parts(
    parts_out,
    parts_log,
    context_lens,
    out,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ROPE: tl.constexpr,
    PDL: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    line = sequence * HEADS + tl.program_id(1)
    release_next(PDL)
    context = tl.load(context_lens + sequence)
    _, _, _, _, parts = _parts(context, ROPE, WINDOW, SPLITS, BLOCK_N)
    await_inputs(PDL)
    split = tl.arange(0, BLOCK_S)
    place = tl.arange(0, BLOCK_D)
    inside = place < HEAD_DIM
    there = split < parts
    logs = tl.load(parts_log + line * SPLITS + split, mask=there, other=-1e30)
    mask = there[:, None] & inside[None, :]
    values = tl.load(
        parts_out + (line * SPLITS + split)[:, None] * HEAD_DIM + place[None, :], mask=mask, other=0.0
    )
    weight = tl.where(there, tl.exp2(logs - tl.max(logs, axis=0)), 0.0)
    total = tl.sum(values * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out + line * HEAD_DIM + place, total.to(out.dtype.element_ty), mask=inside)


def splits_for(sequences: int, kv_heads: int, longest: int, multiprocessors: int) -> int:
    """Parts that give every multiprocessor up to WAVES programs, never more than tiles in the longest
    context."""
    wanted = WAVES * multiprocessors // (sequences * kv_heads)
    return max(1, min(wanted, MAX_SPLITS, -(-longest // BLOCK_N)))


def decode_attention(
    source: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    cos_sin: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> Tensor:
    """`source` is the queries (sequences, heads, head_dim), keys and values written; or, with `cos_sin`, the
    step's qkv (sequences, (heads + 2 kv_heads) * head_dim). → (sequences, heads, head_dim)."""
    sequences = source.shape[0]
    device = card(source.device)
    longest = batch.max_context_len if window is None else min(batch.max_context_len, window + BLOCK_N)
    splits = splits_for(sequences, kv_heads, longest, device.multiprocessors)
    many = sequences * kv_heads >= MANY_PROGRAMS * device.multiprocessors
    halved = many and batch.block_size < BLOCK_N and k_cache.dtype.itemsize > 1
    out = torch.empty((sequences, heads, head_dim), dtype=source.dtype, device=source.device)
    if splits == 1:
        parts_out = parts_log = out
    else:
        parts_out = torch.empty(sequences, heads, splits, head_dim, dtype=torch.float32, device=source.device)
        parts_log = torch.empty(sequences, heads, splits, dtype=torch.float32, device=source.device)
    shape = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_N": BLOCK_N // 2 if halved else BLOCK_N,
        "WINDOW": window or 0,
        "SPLITS": splits,
        "ROPE": cos_sin is not None,
        "PDL": device.dependent_launch,
        "num_warps": WARPS,
    }
    _decode[(sequences, kv_heads, splits)](
        source,
        source if cos_sin is None else cos_sin,
        source if q_norm is None else q_norm,
        source if k_norm is None else k_norm,
        k_cache,
        v_cache,
        batch.block_tables,
        batch.context_lens,
        batch.slots,
        out,
        parts_out,
        parts_log,
        batch.block_tables.shape[1],
        scale,
        eps,
        norm_offset,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2 if cos_sin is None else cos_sin.shape[-1],
        BLOCK_G=max(16, triton.next_power_of_2(heads // kv_heads)),
        PAGE=batch.block_size,
        SOFTCAP=softcap or 0.0,
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        LOG2=LOG2E,
        PAIR_SCALE=PAIR_SCALE,
        num_stages=STAGES,
        **shape,
        **device.options,
    )
    if splits > 1:
        _weigh_parts[(sequences, heads)](
            parts_out,
            parts_log,
            batch.context_lens,
            out,
            BLOCK_S=triton.next_power_of_2(splits),
            **shape,
            **device.options,
        )
    return out
