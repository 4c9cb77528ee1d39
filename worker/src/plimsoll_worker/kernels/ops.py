"""The operations a decoder is made of: Triton kernels on a GPU, plain PyTorch elsewhere.

A decoder layer is five calls, whatever the number of rows:

    qkv      = norm_linear(x, norm, eps, qkv_weight, qkv_bias)
    attended = rope_attention(qkv, batch, cos_sin, keys, values, …)
    x        = linear_add(attended, output_weight, x)
    active   = norm_gate_up(x, norm, eps, gate_up_weight, "silu")
    x        = linear_add(active, down_weight, x)

With few rows each is one kernel that reads its weights once at the memory's speed; with many, norm and
activation are kernels of their own around cuBLAS. Weights of fewer bits have their own kernels
(`quantized`). The parts (rms_norm, linear, rope_store, attention, …) are
here too, for decoders whose layers have another shape (a norm behind the output projection).

Triton is imported inside the calls: the CPU wheels of PyTorch come without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll_worker.kernels import reference
from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.kernels.matrix import Matrix, OneMatrix, QuantizedMatrix, StackedMatrix
from plimsoll_worker.kernels.reference import Activation

FEW_ROWS = 16
"""Up to so many rows a step is bound by reading weights and the fused kernels take over from cuBLAS."""


def on_gpu(x: Tensor) -> bool:
    """Whether kernels take x. A tensor without memory ("meta") stands for a GPU's (`kernels.recording`)."""
    return x.is_cuda or x.is_meta


def few_rows(x: Tensor) -> bool:
    """Whether the fused kernels take x (rows, width). On CPUs nothing is fused; nor is FP16, where a row that
    is multiplied before it is normed may pass the largest number."""
    return on_gpu(x) and x.dtype == torch.bfloat16 and x.shape[0] <= FEW_ROWS


def _fused(x: Tensor, weight: Matrix) -> Callable[..., Tensor] | None:
    """What does norm, product and all that follows in one call, if there is something."""
    if not on_gpu(x) or isinstance(weight, StackedMatrix):
        return None
    if isinstance(weight, QuantizedMatrix):
        from plimsoll_worker.kernels.quantized import quantized_linear

        return quantized_linear
    if few_rows(x):
        from plimsoll_worker.kernels.few_rows import fused_linear

        return fused_linear
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """x / rms(x) * (weight + offset) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467) in
    FP32, rounded once. (…, width) → (…, width). Gemma's offset is 1."""
    if on_gpu(x):
        from plimsoll_worker.kernels import norm

        return norm.rms_norm(x, weight, eps, offset=offset)
    return reference.rms_norm(x, weight, eps, offset=offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual), both in x's dtype; x and residual are (rows, width)."""
    if on_gpu(x):
        from plimsoll_worker.kernels import norm

        return norm.add_rms_norm(x, residual, weight, eps, offset=offset)
    return reference.add_rms_norm(x, residual, weight, eps, offset=offset)


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    """activation(gate) * up of gate_up (rows, 2 * inter), gate first → (rows, inter) (Shazeer 2020,
    arXiv:2002.05202)."""
    if on_gpu(gate_up):
        from plimsoll_worker.kernels import norm

        return norm.gated_activation(gate_up, kind)
    return reference.gated_activation(gate_up, kind)


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x (rows, inputs) @ weight (outputs, inputs)ᵀ + bias → (rows, outputs)."""
    if isinstance(weight, StackedMatrix):
        return torch.cat([linear(x, part, biases) for part, biases in _stacked(weight, bias)], dim=-1)
    if fused := _fused(x, weight):
        return fused(x, weight, bias)
    return reference.linear(x, weight, bias)


def _stacked(weight: StackedMatrix, bias: Tensor | None) -> Iterator[tuple[OneMatrix, Tensor | None]]:
    """Each part and its biases."""
    first = 0
    for part in weight.parts:
        last = first + part.shape[0]
        yield part, None if bias is None else bias[first:last]
        first = last


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Matrix,
    bias: Tensor | None = None,
    *,
    offset: float = 0.0,
) -> Tensor:
    """linear(rms_norm(x)): (rows, inputs) → (rows, outputs)."""
    if fused := _fused(x, weight):
        return fused(x, weight, bias, norm_weight=norm_weight, eps=eps, offset=offset)
    return linear(rms_norm(x, norm_weight, eps, offset=offset), weight, bias)


def norm_gate_up(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Matrix,
    kind: Activation,
    bias: Tensor | None = None,
    *,
    offset: float = 0.0,
) -> Tensor:
    """gated_activation(linear(rms_norm(x))): weight (2 * inter, inputs), gate first → (rows, inter)."""
    if fused := _fused(x, weight):
        return fused(x, weight, bias, norm_weight=norm_weight, eps=eps, offset=offset, gated=kind)
    return gated_activation(norm_linear(x, norm_weight, eps, weight, bias, offset=offset), kind)


def linear_add(
    x: Tensor, weight: Matrix, residual: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """residual + scale * linear(x): (rows, inputs), (rows, outputs) → (rows, outputs). On a GPU the answer
    lies in the residual's own memory: do not use `residual` afterwards."""
    if fused := _fused(x, weight):
        return fused(x, weight, bias, residual=residual, scale=scale)
    if on_gpu(x) and isinstance(weight, Tensor) and bias is None:
        # cuBLAS adds the residual while it writes: neither a kernel nor a buffer of its own.
        return residual.addmm_(x, weight.t(), alpha=scale)
    return residual + scale * linear(x, weight, bias)


def grouped_linear(
    x: Tensor,
    weight: OneMatrix,
    last_rows: Tensor,
    *,
    places: Tensor | None = None,
    gated: Activation | None = None,
) -> Tensor:
    """Rows of x (rows, inputs), or its rows `places` (rows) int64, each times one of several matrices →
    (rows, outputs, or half of it with `gated`). Those of the e-th group, up to row `last_rows[e]` (exclusive,
    int32), meet the e-th of `weight` (groups, outputs, inputs); quantized matrices lie one below the other,
    (groups * outputs, inputs). Nothing is read back from a GPU."""
    if isinstance(weight, QuantizedMatrix) and on_gpu(x):
        from plimsoll_worker.kernels import expert_tiles

        return expert_tiles.grouped_linear(x, weight, last_rows, places=places, gated=gated)
    out = _grouped(x if places is None else x[places], weight, last_rows)
    return out if gated is None else gated_activation(out, gated)


def _grouped(x: Tensor, weight: OneMatrix, last_rows: Tensor) -> Tensor:
    if isinstance(weight, QuantizedMatrix):
        return reference.grouped_linear(x, weight, last_rows)
    return functional.grouped_mm(x, weight.transpose(1, 2), offs=last_rows)


def rope_angles(positions: Tensor, inverse: Tensor, *, scale: float = 1.0) -> Tensor:
    """Cosines and sines of positions (tokens) int64 times inverse frequencies (rotary_dim / 2) FP32, times
    `scale` → (tokens, 2, rotary_dim / 2) FP32: once a step, for all layers."""
    if on_gpu(positions):
        from plimsoll_worker.kernels import rope

        return rope.rope_angles(positions, inverse, scale=scale)
    return reference.rope_angles(positions, inverse, scale=scale)


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
    """Norm (Qwen3, Gemma3) and rotate queries and keys, write keys and values to the cache.

    qkv (tokens, (heads + 2 * kv_heads) * head_dim); cos_sin (tokens, 2, rotary_dim / 2) FP32: the first
    rotary_dim elements of a head are rotated in NeoX order; q_norm and k_norm (head_dim); caches (slots,
    kv_heads, head_dim). Returns the queries, (tokens, heads, head_dim).
    """
    store = reference.rope_store
    if on_gpu(qkv):
        from plimsoll_worker.kernels.rope import rope_store as store
    return store(
        qkv,
        batch,
        cos_sin,
        k_cache,
        v_cache,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_offset=norm_offset,
    )


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
    """Causal attention of q (tokens, heads, head_dim) over the paged cache, the step's own keys and values
    written before → (tokens, heads, head_dim); rows of padding give zeros or nothing in particular.

    A query sees itself and what is before it, `window` tokens at most. With `softcap` scores are
    softcap * tanh(scale * q·k / softcap).
    """
    if not on_gpu(q):
        return reference.attention(q, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap)
    if batch.max_query_len > 1:
        from plimsoll_worker.kernels.prefill_attention import prefill_attention

        return prefill_attention(q, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap)
    from plimsoll_worker.kernels.decode_attention import decode_attention

    return decode_attention(
        q,
        k_cache,
        v_cache,
        batch,
        heads=q.shape[1],
        kv_heads=k_cache.shape[1],
        head_dim=q.shape[2],
        scale=scale,
        window=window,
        softcap=softcap,
    )


def rope_attention(
    qkv: Tensor,
    batch: AttentionBatch,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`rope_store`, then `attention` → (tokens, heads * head_dim). One kernel when each sequence has one new
    token."""
    if on_gpu(qkv) and batch.max_query_len == 1:
        from plimsoll_worker.kernels.decode_attention import decode_attention

        return decode_attention(
            qkv,
            k_cache,
            v_cache,
            batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=scale,
            window=window,
            softcap=softcap,
            cos_sin=cos_sin,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            norm_offset=norm_offset,
        ).flatten(1)
    queries = rope_store(
        qkv,
        batch,
        cos_sin,
        k_cache,
        v_cache,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_offset=norm_offset,
    )
    return attention(queries, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap).flatten(1)


def penalize(
    logits: Tensor,
    slots: Tensor,
    prompt_tokens: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Penalties of OpenAI's API and of Keskar et al. 2019 (arXiv:1909.05858), in place on logits (rows,
    vocabulary) FP32.

    slots (rows) int64: each row's place in prompt_tokens (slots, vocabulary) uint8, 1 where the prompt has
    the token, and output_counts (slots, vocabulary) int32. repetition, presence, frequency (rows) FP32; 1, 0
    and 0 leave a row as it is.
    """
    if on_gpu(logits):
        from plimsoll_worker.kernels import sampling

        sampling.penalize(logits, slots, prompt_tokens, output_counts, repetition, presence, frequency)
        return
    reference.penalize(logits, slots, prompt_tokens, output_counts, repetition, presence, frequency)


def sample(logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """A token of each row of logits (rows, vocabulary) → (rows) int64.

    Gumbel-max (Gumbel 1954): argmax(logits / temperature + noise), noise by Philox of (seed, position,
    token), so the draw does not depend on the rest of the batch. temperature (rows) FP32, 0 is greedy; seeds
    and positions (rows) int64. Tokens that must not be drawn have logits of -inf.
    """
    if on_gpu(logits):
        from plimsoll_worker.kernels import sampling

        return sampling.sample(logits, temperature, seeds, positions)
    return reference.sample(logits, temperature, seeds, positions)
