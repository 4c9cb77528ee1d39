"""A scheduled step as arrays: what the model, the cache and the sampler must know of it.

    tokens    one entry a token to compute     place in the token table, position, cache slot
    rows      one entry a sequence             its slot, its context after the step, its first token
    samples   one entry a completed sequence   its last token, where the new token goes, seed, temperature

In a decode step the three are the same sequences in the same order. A step may be padded to a size for which
there is a graph.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plimsoll_worker.engine.sampler import Noise, sampling_position, temperature_of
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.slot_tables import SlotTables
from plimsoll_worker.engine.staging import Staging


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tensors on the device, views of the staging buffer. int64 where nothing else is said."""

    token_places: Tensor
    """(tokens): where each token's id stands in the flat token table."""
    positions: Tensor
    """(tokens)"""
    cache_slots: Tensor
    """(tokens): where its key and value go; -1: nowhere."""
    slots: Tensor
    """(rows)"""
    context_lens: Tensor
    """(rows) int32"""
    query_start: Tensor
    """(rows + 1) int32"""
    last_tokens: Tensor
    """(samples): rows of the hidden states that become logits."""
    new_places: Tensor
    """(samples): where each new token goes in the flat token table."""
    noise: Noise
    """Of the samples."""
    max_query_len: int
    max_context_len: int


def words_needed(tokens: int, slots: int, block_size: int) -> int:
    """Size of the staging buffer for steps of up to `tokens` tokens of `slots` sequences."""
    per_token, per_row, grown = 3, 10, 2 * (tokens // block_size + 2 * slots)
    arrays = 18
    return per_token * tokens + per_row * (slots + 1) + grown + 2 * arrays


def decode_inputs(
    step: Ordered[Scheduled],
    staging: Staging,
    tables: SlotTables,
    block_size: int,
    *,
    size: int,
    longest: int,
) -> StepInputs:
    """A step of one token a sequence, padded to `size` rows, none with a context above `longest`."""
    slots = [part.sequence.slot for part in step]
    starts = [part.start for part in step]
    padding = size - len(step)
    places = [slot * tables.width + start for slot, start in zip(slots, starts, strict=True)]
    idle = tables.padding * tables.width
    cache_slots = [
        part.sequence.block_table[part.start // block_size] * block_size + part.start % block_size
        for part in step
    ]
    positions = starts + [0] * padding
    return StepInputs(
        token_places=staging.put(places + [idle] * padding, torch.int64),
        positions=staging.put(positions, torch.int64),
        cache_slots=staging.put(cache_slots + [-1] * padding, torch.int64),
        slots=staging.put(slots + [tables.padding] * padding, torch.int64),
        context_lens=staging.put([start + 1 for start in starts] + [0] * padding, torch.int32),
        query_start=staging.put(np.arange(size + 1), torch.int32),
        last_tokens=staging.put(np.arange(size), torch.int64),
        new_places=staging.put([place + 1 for place in places] + [idle] * padding, torch.int64),
        noise=_noise(step, staging, padding),
        max_query_len=1,
        max_context_len=longest,
    )


@dataclass(frozen=True, slots=True)
class Padding:
    """What a step is padded to."""

    tokens: int
    rows: int
    longest: int
    """No context that a graph of these shapes meets is longer."""


def mixed_inputs(
    step: Ordered[Scheduled],
    staging: Staging,
    tables: SlotTables,
    block_size: int,
    *,
    samples: int,
    padding: Padding | None = None,
) -> StepInputs:
    """A step of any tokens, its samples padded to `samples`."""
    counts = [part.count for part in step]
    starts = np.cumsum([0, *counts])
    if padding is None:
        longest = max(part.start + part.count for part in step)
        padding = Padding(tokens=int(starts[-1]), rows=len(step), longest=longest)
        most = max(counts)
    else:
        most = padding.tokens
    idle = tables.padding * tables.width
    positions = np.zeros(padding.tokens, dtype=np.int64)
    places, cache_slots = np.full_like(positions, idle), np.full_like(positions, -1)
    for index, part in enumerate(step):
        mine = slice(starts[index], starts[index + 1])
        own = np.arange(part.start, part.start + part.count)
        table = np.array(part.sequence.block_table)
        positions[mine] = own
        places[mine] = own + part.sequence.slot * tables.width
        cache_slots[mine] = table[own // block_size] * block_size + own % block_size
    completed = [part for part in step if part.completes]
    ends = [int(end) - 1 for end, part in zip(starts[1:], step, strict=True) if part.completes]
    new_places = [part.sequence.slot * tables.width + sampling_position(part) for part in completed]
    nobody = padding.rows - len(step)
    lacking = samples - len(completed)
    return StepInputs(
        token_places=staging.put(places, torch.int64),
        positions=staging.put(positions, torch.int64),
        cache_slots=staging.put(cache_slots, torch.int64),
        slots=staging.put([part.sequence.slot for part in step] + [tables.padding] * nobody, torch.int64),
        context_lens=staging.put([part.start + part.count for part in step] + [0] * nobody, torch.int32),
        query_start=staging.put([*starts, *[starts[-1]] * nobody], torch.int32),
        # Samples have no part in a graph: their places may move.
        last_tokens=staging.put(ends + [0] * lacking, torch.int64),
        new_places=staging.put(new_places + [idle] * lacking, torch.int64),
        noise=_noise(completed, staging, lacking),
        max_query_len=most,
        max_context_len=padding.longest,
    )


def _noise(samples: Ordered[Scheduled], staging: Staging, padding: int) -> Noise:
    temperatures = [temperature_of(part.sequence.params) for part in samples]
    seeds = [part.sequence.seed for part in samples]
    positions = [sampling_position(part) for part in samples]
    return Noise(
        temperatures=staging.put(temperatures + [0.0] * padding, torch.float32),
        seeds=staging.put(seeds + [0] * padding, torch.int64),
        positions=staging.put(positions + [0] * padding, torch.int64),
    )
