"""Experts in fewer bits on a real card, for `quantized_on_gpu.py`: are both products of a layer right, also
when a captured step meets other rows, and how fast are they beside 16 bit?"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from kernel_bench import BF16, random, seconds
from tests.unit.worker.kernels.quantization import KINDS, random_matrix
from torch import Tensor

from plimsoll_worker.kernels import ops, reference
from plimsoll_worker.kernels.matrix import OneMatrix, QuantizedMatrix, dequantize

EXPERTS, PER_TOKEN, HIDDEN, WIDTH = 128, 8, 2048, 768
"""Of a layer of Qwen3-30B-A3B."""
TOKENS = (1, 16, 64, 256, 2048)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows of x each expert has."""

    places: Tensor
    last_rows: Tensor

    @classmethod
    def of(cls, tokens: int, experts: int, per_token: int, device: str) -> Chosen:
        """Some experts are chosen often, every third never."""
        liking = torch.rand(tokens, experts, device=device) * torch.rand(experts, device=device)
        liking[:, ::3] = -1
        chosen = liking.topk(per_token, dim=-1).indices.flatten()
        order = chosen.argsort(stable=True)
        ends = torch.searchsorted(chosen[order], torch.arange(experts, device=device), right=True)
        return cls(order // per_token, ends.to(torch.int32))

    def take(self, other: Chosen) -> None:
        self.places.copy_(other.places)
        self.last_rows.copy_(other.last_rows)


def products(x: Tensor, gate_up: OneMatrix, down: OneMatrix, chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Of the layer: the activated one (rows, width), and the answers (rows, hidden)."""
    inner = ops.grouped_linear(x, gate_up, chosen.last_rows, places=chosen.places, gated="silu")
    return inner, ops.grouped_linear(inner, down, chosen.last_rows)


def error(out: Tensor, wanted: Tensor) -> float:
    return float((out.double() - wanted).norm() / wanted.norm())


def scaled(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> QuantizedMatrix:
    """Random experts (experts, outputs, inputs), one below the other."""
    experts, outputs, inputs = shape
    weight = random_matrix(kind, experts * outputs, inputs, dtype, device)
    weight.scales.mul_(inputs**-0.5)
    if weight.minimums is not None:
        weight.minimums.mul_(inputs**-0.5)
    return weight


def errors(
    x: Tensor, gate_up: QuantizedMatrix, down: QuantizedMatrix, chosen: Chosen, found: tuple[Tensor, Tensor]
) -> Iterator[float]:
    """Of each product by itself, against FP64, expert by expert."""
    inner, out = found
    counts = torch.diff(chosen.last_rows, prepend=chosen.last_rows.new_zeros(1)).tolist()
    for rows, weight, answer in ((x[chosen.places], gate_up, inner), (inner, down, out)):
        wide = dequantize(weight, torch.float64).view(len(counts), -1, weight.inputs)
        parts = torch.split(rows.double(), counts)
        wanted = torch.cat([part @ matrix.t() for part, matrix in zip(parts, wide, strict=True)])
        yield error(answer, reference.gated_activation(wanted, "silu") if weight is gate_up else wanted)


def check_experts(kind: str, tokens: int, dtype: torch.dtype, device: str = "cuda") -> dict[str, float]:
    """‖out - FP64‖ / ‖FP64‖ of both products, and of the same captured and replayed with rows of others."""
    experts, per_token, hidden, width = 10, 3, 384, 256
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    gate_up = scaled(kind, (experts, 2 * width, hidden), dtype, device)
    down = scaled(kind, (experts, hidden, width), dtype, device)
    chosen = Chosen.of(tokens, experts, per_token, device)
    label = f"experts {kind} {tokens} tokens {str(dtype)[6:]}"
    names = ("gate and up", "down")
    found = errors(x, gate_up, down, chosen, products(x, gate_up, down, chosen))
    told = {f"{name} of {label}": value for name, value in zip(names, found, strict=True)}
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = products(x, gate_up, down, chosen)
        chosen.take(Chosen.of(tokens, experts, per_token, device))
        graph.replay()
        found = errors(x, gate_up, down, chosen, kept)
        told |= {f"{name} of {label}, replayed": value for name, value in zip(names, found, strict=True)}
        torch.cuda.synchronize()
    return told


def check_cases() -> list[tuple[str, int, torch.dtype]]:
    """Fewer rows than experts, about a tile each, and many."""
    cases = [(kind, tokens, BF16) for kind in KINDS for tokens in (1, 5, 48, 600)]
    return [*cases, *((kind, 48, torch.float16) for kind in ("INT8", "INT4 group 128", "FP8"))]


def expert_times(precisions: tuple[str, ...]) -> dict[str, Any]:
    """Milliseconds of both products of a layer of Qwen3-30B-A3B, and how many times faster than 16 bit."""
    found: dict[str, Any] = {}
    for kind in ("BF16", *precisions):
        if kind == "BF16":
            gate_up: OneMatrix = random(EXPERTS, 2 * WIDTH, HIDDEN, scale=HIDDEN**-0.5)
            down: OneMatrix = random(EXPERTS, HIDDEN, WIDTH, scale=WIDTH**-0.5)
        else:
            gate_up = scaled(kind, (EXPERTS, 2 * WIDTH, HIDDEN), BF16, "cuda")
            down = scaled(kind, (EXPERTS, HIDDEN, WIDTH), BF16, "cuda")
        found[kind] = {}
        for tokens in TOKENS:
            torch.manual_seed(tokens)
            x = random(tokens, HIDDEN)
            choices = [Chosen.of(tokens, EXPERTS, PER_TOKEN, "cuda") for _ in range(8)]
            work = [functools.partial(products, x, gate_up, down, each) for each in choices]
            found[kind][tokens] = round(seconds(work) * 1e3, 4)
    found["ratios"] = {
        kind: {tokens: round(found["BF16"][tokens] / taken, 3) for tokens, taken in found[kind].items()}
        for kind in precisions
    }
    return found
