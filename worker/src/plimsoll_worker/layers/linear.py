"""Matrices that wait for their weights.

torch.nn's own classes fill what they make with random numbers; on the "meta" device, where a model is built
before it is read, that alone loads torch's compiler: seconds of start-up and 115 MiB (torch 2.11).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from plimsoll_worker.kernels import ops
from plimsoll_worker.layers.rmsnorm import RMSNorm
from plimsoll_worker.layers.waiting import waiting


class Linear(nn.Module):
    """x @ weightᵀ + bias; the weight is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = waiting(outputs, inputs)
        self.bias = waiting(outputs) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) → (rows, outputs)."""
        return ops.linear(x, self.weight, self.bias)

    def after(self, norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        """Of the norm of x: (rows, inputs) → (rows, outputs)."""
        return ops.norm_linear(x, norm.weight, norm.eps, self.weight, self.bias, offset=norm.offset)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        """residual + scale * linear(x); `residual` (rows, outputs) is used up."""
        return ops.linear_add(x, self.weight, residual, self.bias, scale=scale)


class Embedding(nn.Module):
    """A row of `weight` (vocabulary, width) for each token."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = waiting(vocabulary, width)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(tokens) → (tokens, width)."""
        return functional.embedding(token_ids, self.weight)
