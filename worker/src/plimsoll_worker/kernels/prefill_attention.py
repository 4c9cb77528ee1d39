"""Attention of many new tokens a sequence over the paged cache, mixed with sequences that have one.

A program takes some of a sequence's new tokens and one key head with all query heads that share it, so a tile
of keys is read once for BLOCK_M queries ("Q blocking", as in vLLM's unified Triton attention). Which sequence
a program belongs to is searched in `query_start` on the device: the grid follows from host bounds alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.kernels.decode_attention import LOG2E, cache_slots, computed_in, softcapped
from plimsoll_worker.kernels.launching import await_inputs, card, release_next

BLOCK_M = 128
"""Queries times heads of a program."""
BLOCK_N = 64
"""Keys of a tile."""
WARPS, STAGES = 4, 3
WHOLE_PROMPT = 2048
"""Tokens of a lone prompt from which cuDNN takes over. On one H100 8192 tokens of 32 heads of 128 took it
0.89 ms, this module's kernel 1.37 ms and torch's FlashAttention-2 1.70 ms (2026-11-23, kernels_on_gpu.py)."""
LENGTH_STEP = 1024
"""Lengths that cuDNN sees are multiples."""


@triton.jit
def _sequence_of(query_start, block, sequences, BLOCK_Q: tl.constexpr):
    """The sequence whose tokens block `block` holds. Sequence i owns the blocks from
    query_start[i] // BLOCK_Q + i on, so each has room for a last block that is not full."""
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // BLOCK_Q + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _tiles(
    acc,
    mass,
    top,
    q,
    k_cache,
    v_cache,
    table,
    position,
    kv_head,
    begin,
    end,
    scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOG2: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Attend to the keys from begin (a multiple of BLOCK_N) to end; not MASKED: all queries see all."""
    place = tl.arange(0, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        valid = at < end
        slot = cache_slots(table, at, start, PAGE, BLOCK_N, valid)
        line = (slot * KV_HEADS + kv_head) * HEAD_DIM
        if MASKED:
            read = valid[:, None] & (place < HEAD_DIM)[None, :]
            key = tl.load(k_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
            value = tl.load(v_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
        elif BLOCK_D > HEAD_DIM:
            read = (place < HEAD_DIM)[None, :]
            key = tl.load(k_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
            value = tl.load(v_cache + line[:, None] + place[None, :], mask=read, other=0.0).to(q.dtype)
        else:
            key = tl.load(k_cache + line[:, None] + place[None, :]).to(q.dtype)
            value = tl.load(v_cache + line[:, None] + place[None, :]).to(q.dtype)
        score = tl.dot(q, tl.trans(key), input_precision="ieee")
        score = softcapped(score * scale, SOFTCAP, LOG2) if SOFTCAP > 0 else score * (scale * LOG2)
        if MASKED:
            seen = valid[None, :] & (at[None, :] <= position[:, None])
            if WINDOW > 0:
                seen = seen & (at[None, :] > position[:, None] - WINDOW)
            score = tl.where(seen, score, -1e30)
        higher = tl.maximum(top, tl.max(score, axis=1))
        # -1e30 - higher is a huge negative number but for rows that have seen nothing: their mass is put
        # right when `fade` becomes 0 at the first key they see.
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        mass = mass * fade + tl.sum(weight, axis=1)
        acc = acc * fade[:, None]
        acc = tl.dot(weight.to(q.dtype), value, acc, input_precision="ieee")
        top = higher
    return acc, mass, top


@triton.jit(do_not_specialize=["sequences", "blocks", "table_width"])
def _prefill(
    queries,
    k_cache,
    v_cache,
    block_tables,
    context_lens,
    query_start,
    out,
    sequences,
    blocks,
    table_width,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOG2: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUP: tl.constexpr = HEADS // KV_HEADS
    # Late blocks see the longest contexts: they go first, or the card would end on a few long programs.
    block = blocks - 1 - tl.program_id(1)
    kv_head = tl.program_id(0)
    await_inputs(PDL)
    release_next(PDL)
    sequence = _sequence_of(query_start, block, sequences, BLOCK_Q)
    start = tl.load(query_start + sequence)
    new = tl.load(query_start + sequence + 1) - start
    offset = (block - (start // BLOCK_Q + sequence)) * BLOCK_Q
    context = tl.load(context_lens + sequence)
    if offset >= new or context == 0:
        return
    member = tl.arange(0, BLOCK_Q * BLOCK_G)
    token = offset + member // BLOCK_G
    share = member % BLOCK_G
    live = (token < new) & (share < GROUP)
    place = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (place < HEAD_DIM)[None, :]
    line = ((start + token).to(tl.int64) * HEADS + kv_head * GROUP + share) * HEAD_DIM
    q = computed_in(k_cache, tl.load(queries + line[:, None] + place[None, :], mask=mask, other=0.0))
    earlier = context - new
    position = earlier + token
    end = tl.minimum(earlier + offset + BLOCK_Q, context)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(earlier + offset - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        whole = begin
    else:
        whole = (earlier + offset + 1) // BLOCK_N * BLOCK_N
    table = block_tables + sequence.to(tl.int64) * table_width
    top = tl.full([BLOCK_Q * BLOCK_G], -1e30, tl.float32)
    mass = tl.zeros([BLOCK_Q * BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_Q * BLOCK_G, BLOCK_D], tl.float32)
    if WINDOW == 0:
        acc, mass, top = _tiles(
            acc, mass, top, q, k_cache, v_cache, table, position, kv_head, begin, whole, scale, KV_HEADS,
            HEAD_DIM, BLOCK_D, BLOCK_N, PAGE, WINDOW, SOFTCAP, LOG2, False,
        )  # fmt: skip
    acc, mass, top = _tiles(
        acc, mass, top, q, k_cache, v_cache, table, position, kv_head, whole, end, scale, KV_HEADS,
        HEAD_DIM, BLOCK_D, BLOCK_N, PAGE, WINDOW, SOFTCAP, LOG2, True,
    )  # fmt: skip
    acc = acc / tl.maximum(mass, 1e-30)[:, None]
    tl.store(out + line[:, None] + place[None, :], acc.to(out.dtype.element_ty), mask=mask)


def _is_whole_prompt(q: Tensor, batch: AttentionBatch, window: int | None, softcap: float | None) -> bool:
    """Whether the step is one long prompt, none of it computed before: then cuDNN is worth its plan."""
    return (
        q.shape[0] >= WHOLE_PROMPT
        and batch.context_lens.shape[0] == 1
        and batch.max_query_len == batch.max_context_len == q.shape[0]
        and (window is None or window >= q.shape[0])
        and softcap is None
        and q.shape[2] in (64, 128)
        and q.dtype in (torch.bfloat16, torch.float16)
        and card(q.device).dependent_launch
    )


def _whole_prompt(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    """cuDNN's attention over gathered keys and values. It makes a plan for every length it meets (45 ms), so
    lengths are rounded up; being causal, it never lets a token see the padding behind it."""
    tokens = q.shape[0]
    padding = -tokens % LENGTH_STEP
    slots = functional.pad(batch.slots, (0, padding))
    keys, values = (cache[slots].to(q.dtype).transpose(0, 1)[None] for cache in (k_cache, v_cache))
    queries = functional.pad(q, (0, 0, 0, 0, 0, padding)).transpose(0, 1)[None]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k_cache.shape[1]
        )
    return out[0].transpose(0, 1)[:tokens]


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As `ops.attention`; rows of padding sequences are left as they come."""
    if _is_whole_prompt(q, batch, window, softcap):
        return _whole_prompt(q, k_cache, v_cache, batch, scale)
    tokens, heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    group = triton.next_power_of_2(heads // kv_heads)
    block_q = max(1, BLOCK_M // group)
    sequences = batch.context_lens.shape[0]
    blocks = tokens // block_q + sequences
    out = torch.empty_like(q)
    device = card(q.device)
    _prefill[(kv_heads, blocks)](
        q,
        k_cache,
        v_cache,
        batch.block_tables,
        batch.context_lens,
        batch.query_start,
        out,
        sequences,
        blocks,
        batch.block_tables.shape[1],
        scale,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_Q=block_q,
        BLOCK_G=group,
        BLOCK_N=BLOCK_N,
        PAGE=batch.block_size,
        WINDOW=window or 0,
        SOFTCAP=softcap or 0.0,
        LOG2=LOG2E,
        PDL=device.dependent_launch,
        num_warps=WARPS,
        num_stages=STAGES,
        **device.options,
    )
    return out
