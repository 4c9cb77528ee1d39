"""Shapes, random batches and the clock that the measurements of kernels share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2] / "worker/src")]

from plimsoll_worker.kernels import ops  # noqa: E402
from plimsoll_worker.kernels.batch import AttentionBatch  # noqa: E402

BF16 = torch.bfloat16
CUDA = "cuda"


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qk_norm: bool


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151936, True),
}


def linears(shape: Shape) -> tuple[tuple[str, int, int, bool], ...]:
    """(name, inputs, outputs, gated) of a layer's weights; a gated one has twice as many rows."""
    return (
        ("qkv", shape.hidden, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, False),
        ("output", shape.heads * shape.head_dim, shape.hidden, False),
        ("gate-up", shape.hidden, shape.inter, True),
        ("down", shape.inter, shape.hidden, False),
    )


def decoding(rows: int) -> AttentionBatch:
    """A decode step as a graph for contexts of up to 8192 tokens sees it."""
    context = 129 if rows == 1 else 544
    return dataclasses.replace(batch_of([1] * rows, [context] * rows, 16), max_context_len=8192)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=CUDA, dtype=BF16).mul_(scale)


def batch_of(new: list[int], context: list[int], page: int) -> AttentionBatch:
    """Sequences with `context` tokens of which `new` are new, in pages at random places."""
    pages = [-(-length // page) for length in context]
    order = torch.randperm(sum(pages)).tolist()
    tables = torch.zeros(len(new), max(pages), dtype=torch.int32)
    positions, slots, starts = [], [], [0]
    for index, (count, length) in enumerate(zip(new, context, strict=True)):
        tables[index, : pages[index]] = torch.tensor([order.pop() for _ in range(pages[index])])
        where = torch.arange(length - count, length)
        positions.append(where)
        slots.append(tables[index, where // page].long() * page + where % page)
        starts.append(starts[-1] + count)
    return AttentionBatch(
        tables.to(CUDA),
        torch.tensor(context, dtype=torch.int32, device=CUDA),
        torch.tensor(starts, dtype=torch.int32, device=CUDA),
        torch.cat(positions).to(CUDA),
        torch.cat(slots).to(CUDA),
        max(new),
        max(context),
        page,
    )


def angles(batch: AttentionBatch, head_dim: int) -> Tensor:
    return ops.rope_angles(batch.positions, inverse_frequencies(head_dim))


def inverse_frequencies(head_dim: int) -> Tensor:
    return 500000.0 ** (-torch.arange(0, head_dim, 2, device=CUDA).float() / head_dim)


def seconds(launches: list[Callable[[], Any]], repeats: int = 7, least: float = 1.5e-3) -> float:
    """Median time of one launch, in replays of a CUDA graph of at least `least` seconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
        stream.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for launch in launches:
            launch()
        end.record()
        stream.synchronize()
        rounds = max(1, min(200 // len(launches), int(least * 1e3 / max(begin.elapsed_time(end), 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for launch in launches:
                    launch()
        times = []
        for index in range(repeats + 2):
            begin.record()
            graph.replay()
            end.record()
            stream.synchronize()
            if index >= 2:
                times.append(begin.elapsed_time(end) / 1e3 / (rounds * len(launches)))
    return sorted(times)[len(times) // 2]


@triton.jit
def _read(x, out, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(STEPS):
        total += tl.load(x + start + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


def roofline() -> dict[str, float]:
    """What this card gives: the best of four tilings for the read, so a floor."""
    integers = [torch.randint(0, 99, (1 << 29,), dtype=torch.int32, device=CUDA) for _ in range(4)]
    pairs = ((integers[0], integers[1]), (integers[2], integers[3]))
    copy = seconds([lambda a=a, b=b: b.copy_(a) for a, b in pairs], least=2e-2)
    reads = []
    for block, steps, warps in ((2048, 64, 4), (2048, 16, 4), (4096, 32, 8), (1024, 64, 4)):
        programs = (1 << 29) // (block * steps)
        out = torch.empty(programs, dtype=torch.int32, device=CUDA)
        run = [
            lambda x=x, out=out, block=block, steps=steps, warps=warps: _read[(out.shape[0],)](
                x, out, BLOCK=block, STEPS=steps, num_warps=warps
            )
            for x in integers[:2]
        ]
        reads.append(seconds(run))
    left, right = random(8192, 8192), random(8192, 8192)
    matmul = seconds([lambda: left @ right], least=2e-2)
    return {
        "copyTBps": (2 << 31) / copy / 1e12,
        "readTBps": (1 << 31) / min(reads) / 1e12,
        "matmulTFLOPps": 2 * 8192**3 / matmul / 1e12,
    }


class Model:
    """Random weights of a shape, and a step over them by `ops`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.layers = [
            (
                random(shape.hidden),
                random(qkv, shape.hidden, scale=0.02),
                random(shape.hidden, shape.heads * shape.head_dim, scale=0.02),
                random(shape.hidden),
                random(2 * shape.inter, shape.hidden, scale=0.02),
                random(shape.hidden, shape.inter, scale=0.02),
            )
            for _ in range(shape.layers)
        ]
        self.head = random(shape.vocab, shape.hidden, scale=0.02)
        self.norm = random(shape.hidden)
        self.inverse = inverse_frequencies(shape.head_dim)
        self.greedy = torch.zeros(8192, device=CUDA), torch.zeros(8192, dtype=torch.int64, device=CUDA)
        self.qk_norm = random(shape.head_dim) if shape.qk_norm else None
        self.bytes = 2 * (sum(w.numel() for layer in self.layers for w in layer) + self.head.numel())

    def caches(self, batch: AttentionBatch, kept: torch.dtype = BF16) -> list[tuple[Tensor, Tensor]]:
        size = (batch.block_tables.numel() * batch.block_size, self.shape.kv_heads, self.shape.head_dim)
        return [(random(*size).to(kept), random(*size).to(kept)) for _ in self.layers]

    def through(
        self, x: Tensor, batch: AttentionBatch, turn: Tensor, caches: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """All layers: (tokens, hidden) → (tokens, hidden)."""
        shape = self.shape
        for (norm_in, qkv, output, norm_out, gate_up, down), (keys, values) in zip(
            self.layers, caches, strict=True
        ):
            attended = ops.rope_attention(
                ops.norm_linear(x, norm_in, 1e-5, qkv), batch, turn, keys, values, heads=shape.heads,
                kv_heads=shape.kv_heads, head_dim=shape.head_dim, scale=shape.head_dim**-0.5,
                q_norm=self.qk_norm, k_norm=self.qk_norm,
            )  # fmt: skip
            x = ops.linear_add(attended, output, x)
            x = ops.linear_add(ops.norm_gate_up(x, norm_out, 1e-5, gate_up, "silu"), down, x)
        return x

    def step(self, tokens: Tensor, batch: AttentionBatch, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Token ids (tokens) → the next token of each sequence."""
        x = torch.nn.functional.embedding(tokens, self.head)
        x = self.through(x, batch, ops.rope_angles(batch.positions, self.inverse), caches)
        if batch.max_query_len > 1:
            x = x[batch.query_start[1:].long() - 1]
        heat, zeros = (part[: x.shape[0]] for part in self.greedy)
        return ops.sample(ops.norm_linear(x, self.norm, 1e-5, self.head), heat, zeros, zeros)
