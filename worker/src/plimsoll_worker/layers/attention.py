"""Causal attention of a batch of sequences over the paged KV cache, in plain PyTorch.

One sequence after another, keys and values gathered by slot: the path for the CPU and the reference for
kernels. A padded batch would spend memory and time on the longest context for every sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from plimsoll_worker.layers.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step: rows `first` to `first + length` of the batch, the newest of
    `context` tokens."""

    first: int
    length: int
    slots: torch.Tensor
    """Where all its tokens lie in the cache, (context)."""
    mask: torch.Tensor | None
    """True where a query may look, (length, context); None: everywhere, or causal when `causal`."""
    causal: bool


def span(first: int, length: int, slots: torch.Tensor, window: int | None) -> Span:
    """The span with its mask. Queries are the last `length` of the context; each sees itself and what is
    before it, `window` tokens at most."""
    context = slots.shape[0]
    if window is None or context <= window:
        if length == 1:
            return Span(first, length, slots, None, causal=False)
        if length == context:
            return Span(first, length, slots, None, causal=True)
    query = torch.arange(context - length, context, device=slots.device)[:, None]
    key = torch.arange(context, device=slots.device)[None, :]
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return Span(first, length, slots, mask, causal=False)


def paged_attention(
    queries: torch.Tensor, cache: KVCache, layer: int, spans: tuple[Span, ...]
) -> torch.Tensor:
    """Queries (tokens, heads, head_dim) over the cache → (tokens, heads, head_dim). The step's own keys
    and values must have been written."""
    out = torch.empty_like(queries)
    grouped = queries.shape[1] != cache.keys[layer].shape[1]
    for part in spans:
        rows = slice(part.first, part.first + part.length)
        keys = cache.keys[layer].index_select(0, part.slots).to(queries.dtype)
        values = cache.values[layer].index_select(0, part.slots).to(queries.dtype)
        attended = functional.scaled_dot_product_attention(
            queries[rows].transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=part.mask,
            is_causal=part.causal,
            enable_gqa=grouped,
        )
        out[rows] = attended[0].transpose(0, 1)
    return out
