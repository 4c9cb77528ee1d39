"""Sequences in pages at random places of a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from plimsoll_worker.kernels.batch import AttentionBatch


def batch_of(new: list[int], context: list[int], *, page: int = 16, pages: int = 40) -> AttentionBatch:
    """Sequences with `context` tokens of which `new` are new; a context of 0 is a padding row."""
    free = torch.randperm(pages).tolist()
    tables = torch.zeros(len(new), max(1, -(-max(context) // page)), dtype=torch.int32)
    positions, slots, starts = [], [], [0]
    for index, (count, length) in enumerate(zip(new, context, strict=True)):
        for place in range(-(-length // page)):
            tables[index, place] = free.pop()
        where = torch.arange(max(length - count, 0), max(length, count))
        positions.append(where)
        slot = tables[index, where // page].long() * page + where % page
        slots.append(slot if length else torch.full_like(slot, -1))
        starts.append(starts[-1] + count)
    return AttentionBatch(
        block_tables=tables,
        context_lens=torch.tensor(context, dtype=torch.int32),
        query_start=torch.tensor(starts, dtype=torch.int32),
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        max_query_len=max(new),
        max_context_len=max(context),
        block_size=page,
    )


def caches(batch: AttentionBatch, kv_heads: int, head_dim: int, *, pages: int = 40) -> tuple[Tensor, Tensor]:
    shape = (pages * batch.block_size, kv_heads, head_dim)
    return torch.randn(shape), torch.randn(shape)


def error(out: Tensor, wanted: Tensor) -> float:
    """‖out − wanted‖ / ‖wanted‖"""
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())
