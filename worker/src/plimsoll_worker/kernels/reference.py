"""The kernels' arithmetic in plain PyTorch: what runs on CPUs, and what the GPU's kernels are tested against.

Each function takes any floating dtype. Half precision is widened to FP32 inside, FP32 and FP64 stay, so the
same code in FP64 is the reference that a kernel's error is measured from.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.kernels.matrix import OneMatrix, QuantizedMatrix, dequantized_rows, rows_of

Activation = Literal["silu", "gelu_tanh"]

FP8_MAX = 448.0
"""Largest float8_e4m3fn. torch's cast makes NaN of what is larger, a cache must saturate."""


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    wide = _wide(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * (_wide(weight) + offset)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, eps, offset=offset), total


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    active = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
    return (active * up).to(gate_up.dtype)


def linear(x: Tensor, weight: OneMatrix, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Tensor):
        return functional.linear(x, weight, bias)
    out = x.new_empty(*x.shape[:-1], weight.outputs)
    for rows, part in dequantized_rows(weight, torch.promote_types(x.dtype, torch.float32)):
        out[..., rows] = functional.linear(x, part.to(x.dtype), None if bias is None else bias[rows])
    return out


def grouped_linear(x: Tensor, weight: QuantizedMatrix, last_rows: Tensor) -> Tensor:
    """Only matrices that have rows are widened."""
    outputs = weight.outputs // len(last_rows)
    out, first = x.new_empty(len(x), outputs), 0
    for index, last in enumerate(last_rows.tolist()):
        if first < last:
            matrix = rows_of(weight, index * outputs, (index + 1) * outputs)
            out[first:last] = linear(x[first:last], matrix)
        first = last
    return out


def rope_angles(positions: Tensor, inverse: Tensor, *, scale: float = 1.0) -> Tensor:
    turn = positions.to(inverse.dtype)[:, None] * inverse
    return torch.stack((turn.cos(), turn.sin()), dim=1) * scale


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """The first rotary_dim elements of every head of x (tokens, heads, head_dim), halves against each other
    (NeoX order), by cos_sin (tokens, 2, rotary_dim / 2)."""
    cosines, sines = cos_sin[:, None, 0], cos_sin[:, None, 1]
    half = cosines.shape[-1]
    wide = _wide(x)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines, rest), dim=-1)
    return turned.to(x.dtype)


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
    parts = qkv.view(qkv.shape[0], -1, head_dim)
    queries, keys, values = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None:
        queries = rms_norm(queries, q_norm, eps, offset=norm_offset)
    if k_norm is not None:
        keys = rms_norm(keys, k_norm, eps, offset=norm_offset)
    queries, keys = rotate(queries, cos_sin), rotate(keys, cos_sin)
    written = batch.slots >= 0
    for cache, new in ((k_cache, keys), (v_cache, values)):
        if cache.dtype == torch.float8_e4m3fn:
            new = new.clamp(-FP8_MAX, FP8_MAX)
        cache[batch.slots[written]] = new[written].to(cache.dtype)
    return queries


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    out = torch.zeros_like(q)
    starts = batch.query_start.tolist()
    place = torch.arange(batch.block_size, device=q.device)
    for sequence, context in enumerate(batch.context_lens.tolist()):
        first, last = starts[sequence], starts[sequence + 1]
        if not context or first == last:
            continue
        pages = batch.block_tables[sequence, : -(-context // batch.block_size)].long()
        slots = (pages[:, None] * batch.block_size + place).flatten()[:context]
        out[first:last] = _attend(
            q[first:last], k_cache[slots], v_cache[slots], scale=scale, window=window, softcap=softcap
        )
    return out


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Queries (new, heads, head_dim), the newest of keys and values (context, kv_heads, head_dim)."""
    new, context = q.shape[0], keys.shape[0]
    q, keys, values = (part.to(q.dtype).transpose(0, 1)[None] for part in (q, keys, values))
    mask = None
    if window is not None or new > 1:
        query = torch.arange(context - new, context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)[None, :]
        mask = key <= query
        if window is not None:
            mask &= key > query - window
    if softcap is None:
        attended = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != keys.shape[1]
        )
    else:
        group = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = softcap * torch.tanh(_wide(q @ keys.transpose(2, 3)) * (scale / softcap))
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        attended = torch.softmax(scores, dim=-1).to(q.dtype) @ values
    return attended[0].transpose(0, 1)


def penalize(
    logits: Tensor,
    slots: Tensor,
    prompt_tokens: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    counts = output_counts[slots].to(logits.dtype)
    seen = counts > 0
    known = seen | (prompt_tokens[slots] > 0)
    factor = repetition[:, None].to(logits.dtype)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits.copy_(torch.where(known, repeated, logits))
    logits.sub_(frequency[:, None] * counts + presence[:, None] * seen)


def _philox(seeds: Tensor, counter: Tensor, block: Tensor) -> Tensor:
    """First of the four words of Philox4x32-10 (Salmon et al. 2011) of counter (counter, block, 0, 0) under
    the 64-bit key `seeds`: 0 to 2**32 - 1 in int64, of the arguments' broadcast shape."""
    mask = 0xFFFFFFFF
    c0, c1 = (counter + 0 * block) & mask, (block + 0 * counter) & mask
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seeds & mask, (seeds >> 32) & mask

    def multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
        # The product of two 32-bit words passes int64, so it goes by halves of b.
        low, high = a * (b & 0xFFFF), a * (b >> 16)
        total = high + (low >> 16)
        return total >> 16, ((total << 16) | (low & 0xFFFF)) & mask

    for _ in range(10):
        high0, low0 = multiply(c0, 0xD2511F53)
        high2, low2 = multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0


def sample(logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    wide = _wide(logits)
    token = torch.arange(logits.shape[-1], device=logits.device)
    words = _philox(seeds[:, None], token[None, :], positions[:, None])
    # 23 bits and a half: never 0 nor 1, so both logarithms are finite in FP32.
    uniform = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    gumbel = -torch.log(-torch.log(uniform))
    drawn = wide / temperature.clamp_min(1e-20)[:, None] + gumbel
    return torch.where(temperature[:, None] > 0, drawn, wide).argmax(dim=-1)
