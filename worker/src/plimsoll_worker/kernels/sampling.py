"""A token for each row of logits, and the penalties before it.

Noise comes from a counter (Philox of seed, position, token), not from a generator's state: a request draws
the same tokens whatever shares its batch, and nothing has to be carried from step to step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll_worker.kernels.launching import await_inputs, card, release_next

BLOCK = 1024
MAX_CHUNKS = 128


@triton.jit(do_not_specialize=["vocabulary", "chunk", "chunks"])
def _best_of_chunk(
    logits,
    temperature,
    seeds,
    positions,
    best,
    best_token,
    vocabulary,
    chunk,
    row_stride,
    chunks,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The largest of (logit / temperature + Gumbel noise) among `chunk` tokens, the first of equals."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    await_inputs(PDL)
    release_next(PDL)
    heat = tl.load(temperature + row)
    seed = tl.load(seeds + row)
    position = tl.load(positions + row).to(tl.uint32)
    end = tl.minimum((part + 1) * chunk, vocabulary)
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    where = tl.full([BLOCK], 0, tl.int32) + part * chunk
    for start in range(part * chunk, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = tl.load(logits + row * row_stride + token, mask=token < end, other=-float("inf")).to(
            tl.float32
        )
        if heat > 0:
            word, _, _, _ = tl.philox(
                seed, token.to(tl.uint32), position + tl.zeros_like(token).to(tl.uint32), 0, 0
            )
            uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
            value = value / tl.maximum(heat, 1e-20) - tl.log(-tl.log(uniform))
        better = value > most
        most = tl.where(better, value, most)
        where = tl.where(better, token, where)
    top = tl.max(most, axis=0)
    tl.store(best + row * chunks + part, top)
    tl.store(best_token + row * chunks + part, tl.min(tl.where(most == top, where, vocabulary), axis=0))


@triton.jit(do_not_specialize=["chunks"])
def _best_of_row(best, best_token, tokens, chunks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    there = part < chunks
    await_inputs(PDL)
    release_next(PDL)
    value = tl.load(best + row * chunks + part, mask=there, other=-float("inf"))
    token = tl.load(best_token + row * chunks + part, mask=there, other=2147483647)
    top = tl.max(value, axis=0)
    tl.store(tokens + row, tl.min(tl.where(there & (value == top), token, 2147483647), axis=0).to(tl.int64))


def sample(logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    rows, vocabulary = logits.shape
    device = card(logits.device)
    blocks = triton.cdiv(vocabulary, BLOCK)
    chunks = max(1, min(MAX_CHUNKS, blocks, triton.cdiv(4 * device.multiprocessors, rows)))
    chunk = triton.cdiv(blocks, chunks) * BLOCK
    chunks = triton.cdiv(vocabulary, chunk)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    best_token = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _best_of_chunk[(rows, chunks)](
        logits,
        temperature,
        seeds,
        positions,
        best,
        best_token,
        vocabulary,
        chunk,
        logits.stride(0),
        chunks,
        BLOCK=BLOCK,
        PDL=device.dependent_launch,
        num_warps=4,
        **device.options,
    )
    _best_of_row[(rows,)](
        best,
        best_token,
        tokens,
        chunks,
        BLOCK=MAX_CHUNKS,
        PDL=device.dependent_launch,
        num_warps=1,
        **device.options,
    )
    return tokens


@triton.jit(do_not_specialize=["vocabulary"])
def _penalize(
    logits,
    slots,
    prompt_tokens,
    output_counts,
    repetition,
    presence,
    frequency,
    vocabulary,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocabulary
    await_inputs(PDL)
    release_next(PDL)
    factor = tl.load(repetition + row)
    once = tl.load(presence + row)
    each = tl.load(frequency + row)
    if (factor != 1.0) | (once != 0.0) | (each != 0.0):
        slot = tl.load(slots + row) * vocabulary
        count = tl.load(output_counts + slot + token, mask=inside, other=0).to(tl.float32)
        prompt = tl.load(prompt_tokens + slot + token, mask=inside, other=0)
        value = tl.load(logits + row * vocabulary + token, mask=inside, other=0.0)
        repeated = tl.where(value > 0, value / factor, value * factor)
        value = tl.where((count > 0) | (prompt > 0), repeated, value)
        value -= each * count + tl.where(count > 0, once, 0.0)
        tl.store(logits + row * vocabulary + token, value, mask=inside)


def penalize(
    logits: Tensor,
    slots: Tensor,
    prompt_tokens: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    rows, vocabulary = logits.shape
    device = card(logits.device)
    _penalize[(rows, triton.cdiv(vocabulary, BLOCK))](
        logits,
        slots,
        prompt_tokens,
        output_counts,
        repetition,
        presence,
        frequency,
        vocabulary,
        BLOCK=BLOCK,
        PDL=device.dependent_launch,
        num_warps=4,
        **device.options,
    )
